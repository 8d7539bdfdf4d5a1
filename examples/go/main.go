// An application with one action for backjob: it counts the words in the text
// files of a folder, reports how far it is, and stops when it is told to.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	pb "backjob.example/go/backjobv1"
)

const (
	mostBody = 1 << 20  // as backjob's own limit
	mostFile = 16 << 20 // what is larger is hardly a text
)

func main() {
	key, err := base64.RawURLEncoding.DecodeString(os.Getenv("TRIGGER_KEY"))
	if err != nil || len(key) != 32 {
		log.Fatal("TRIGGER_KEY must be what `backjob keygen --target default` prints as key")
	}
	folder := cmp.Or(os.Getenv("FOLDER"), ".")
	address := "127.0.0.1:" + cmp.Or(os.Getenv("PORT"), "8080")

	http.Handle("/reports/build", &action{key: key, folder: folder})
	log.Printf("listening on %s", address)
	server := &http.Server{Addr: address, ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.ListenAndServe())
}

type action struct {
	key     []byte
	folder  string
	running sync.Map // the attempts at work
}

func (a *action) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := verify(r, body, a.key, time.Now()); err != nil {
		log.Printf("refused: %v", err)
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	// How long to rest after each file, so that there is something to watch.
	pause, err := time.ParseDuration(cmp.Or(r.URL.Query().Get("pause"), "0s"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}

	attempt := r.Header.Get("Backjob-Job-Id") + "/" + r.Header.Get("Backjob-Attempt")
	// Delivery is at least once: the same attempt may come again.
	if _, again := a.running.LoadOrStore(attempt, true); again {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	reports, err := newReporter(r.Header.Get("Backjob-Report-Url"), r.Header.Get("Backjob-Report-Token"), stop)
	if err != nil {
		stop()
		a.running.Delete(attempt)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	go func() {
		defer a.running.Delete(attempt)
		defer stop()
		err := reports.end(a.build(ctx, reports, pause))
		log.Printf("attempt %s has ended: %v", attempt, err)
	}()
	// Detached: from here on the reports alone tell how it goes.
	w.WriteHeader(http.StatusAccepted)
}

// build does the work and returns the report that ends it.
func (a *action) build(ctx context.Context, reports *reporter, pause time.Duration) *pb.ReportRequest {
	files, err := list(a.folder)
	if err != nil {
		return failed(err)
	}
	counts := make(map[string]int)
	texts, words := 0, 0
	var said strings.Builder
	last := time.Now()
	for i, file := range files {
		if ctx.Err() != nil {
			return &pb.ReportRequest{End: &pb.ReportRequest_Stopped{Stopped: &pb.Stopped{}}}
		}
		content, err := os.ReadFile(file)
		if err != nil {
			fmt.Fprintf(&said, "%v\n", err)
		} else if utf8.Valid(content) && !bytes.ContainsRune(content, 0) {
			n := count(content, counts)
			texts, words = texts+1, words+n
			fmt.Fprintf(&said, "%s: %d words\n", file, n)
		}
		// Ten reports a second are enough for any eye.
		if pause > 0 || time.Since(last) > 100*time.Millisecond {
			last = time.Now()
			reports.send(progress(i+1, len(files), said.String()))
			said.Reset()
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
	result, err := json.Marshal(map[string]any{"files": texts, "words": words, "most": most(counts, 10)})
	if err != nil {
		return failed(err)
	}
	end := progress(len(files), len(files), said.String())
	end.End = &pb.ReportRequest_Finish{Finish: &pb.Finish{
		Result: &pb.JobResult{ContentType: "application/json", Data: result},
	}}
	return end
}

func progress(done, total int, said string) *pb.ReportRequest {
	report := &pb.ReportRequest{ // the percentage follows from done and total
		ProgressDetail: &pb.ProgressDetail{
			Done: uint64(done), Total: uint64(total), Unit: "files", Stage: "counting",
		},
	}
	if said != "" {
		report.TextChange = &pb.ReportRequest_AppendText{AppendText: said}
	}
	return report
}

func failed(err error) *pb.ReportRequest {
	return &pb.ReportRequest{End: &pb.ReportRequest_Fail{Fail: &pb.Fail{Message: err.Error()}}}
}

// list names the files below a folder, but those in hidden folders.
func list(folder string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && path != folder && strings.HasPrefix(entry.Name(), ".") {
			return filepath.SkipDir
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() && info.Size() <= mostFile {
			files = append(files, path)
		}
		return nil
	})
	return files, err
}

// count adds the words of a text to counts and says how many there were.
func count(text []byte, counts map[string]int) int {
	words := bytes.FieldsFunc(text, func(c rune) bool { return !unicode.IsLetter(c) && c != '\'' })
	for _, word := range words {
		counts[strings.ToLower(string(word))]++
	}
	return len(words)
}

// most names the n most frequent words.
func most(counts map[string]int, n int) []string {
	words := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), strings.Compare(a, b))
	})
	return words[:min(n, len(words))]
}
