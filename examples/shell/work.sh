#!/bin/sh
# What an application runs in the background for a job: it counts the lines of the
# files in a folder and reports with curl how far it is. The application hands on
# what the trigger's headers say, once it has checked the signature:
#
#     REPORT_URL    Backjob-Report-Url
#     REPORT_TOKEN  Backjob-Report-Token
set -eu

# report JSON: sends one report; the answer says whether to go on.
report() {
  curl -sS --fail-with-body --retry 5 --retry-connrefused --max-time 30 \
    -H "Authorization: Bearer $REPORT_TOKEN" -H 'Content-Type: application/json' \
    -d "$1" "$REPORT_URL/backjob.v1.JobWorker/Report"
}

folder=${1:-.}
total=$(find "$folder" -type f -name '*.rs' | wc -l)
done=0
lines=0
for file in $(find "$folder" -type f -name '*.rs'); do
  lines=$((lines + $(wc -l <"$file")))
  done=$((done + 1))
  # Ten reports in all are enough here.
  if [ $((done % (total / 10 + 1))) -eq 0 ]; then
    answer=$(report "{\"progressDetail\": {\"done\": \"$done\", \"total\": \"$total\", \"unit\": \"files\"}}")
    case $answer in
      *DIRECTIVE_STOP*)
        report '{"stopped": {}}' >/dev/null
        exit
        ;;
    esac
  fi
done
report "{\"statusText\": \"$lines lines in $done files\", \"finish\": {}}" >/dev/null
