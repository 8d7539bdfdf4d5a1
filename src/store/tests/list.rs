//! Lists: filters and pages.

use super::*;
use crate::{job::StateName, store::List};

async fn listed(store: &Store, list: List) -> Vec<JobId> {
    ids(&store.list(&List { limit: 100, ..list }).await.expect("listed"))
}

#[tokio::test]
async fn every_filter_finds_its_own_and_all_must_hold() {
    on_each(async |store| {
        let plain = added(&store, job(1)).await;
        let labelled = job_with(2, rules(), NOW, |spec| {
            spec.labels = BTreeMap::from([("team".into(), "a".into()), ("env".into(), "live".into())]);
            spec.route = "/Üb%_er/1".into();
            spec.target = "other".into();
        });
        let labelled = added(&store, Record { created_by: "somebody".into(), ..labelled }).await;
        let waits = job_with(3, rules(), NOW + 60_000, |spec| {
            spec.labels = BTreeMap::from([("team".into(), "a".into()), ("env".into(), "test".into())]);
        });
        let waits = added(&store, waits).await;
        let mut ended = added(&store, job(4)).await;
        happens(&store, &mut ended, Event::Cancel, at(NOW + 10)).await;
        let [plain, labelled, waits, ended] = [plain.id, labelled.id, waits.id, ended.id];

        let labels = |pairs: &[(&str, &str)]| List {
            labels: pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            ..List::default()
        };
        let states = |states: &[StateName]| List { states: states.to_vec(), ..List::default() };
        let route = |prefix: &str| List { route_prefix: Some(prefix.into()), ..List::default() };
        let both = List { target: Some("default".into()), ..labels(&[("team", "a")]) };
        for (list, expected) in [
            (List::default(), vec![ended, waits, labelled, plain]),
            (labels(&[("team", "a")]), vec![waits, labelled]),
            (labels(&[("env", "test"), ("team", "a")]), vec![waits]),
            (labels(&[("team", "a"), ("env", "none")]), vec![]),
            (both, vec![waits]),
            (states(&[StateName::Cancelled]), vec![ended]),
            (states(&[StateName::Scheduled, StateName::Queued]), vec![waits, labelled, plain]),
            (states(&[StateName::Queued, StateName::Cancelled]), vec![ended, labelled, plain]),
            (states(&[StateName::Running]), vec![]),
            (route("/Üb%_"), vec![labelled]),
            (route("/import?from"), vec![ended, waits, plain]),
            (route("/IMPORT"), vec![]),
            (route(""), vec![ended, waits, labelled, plain]),
            (List { target: Some("other".into()), ..List::default() }, vec![labelled]),
            (List { created_by: Some("somebody".into()), ..List::default() }, vec![labelled]),
            (List { created_after: Some(NOW + 3), ..List::default() }, vec![ended, waits]),
            (List { created_before: Some(NOW + 3), ..List::default() }, vec![labelled, plain]),
            (List { created_before: Some(NOW + 3), ..labels(&[("team", "a")]) }, vec![labelled]),
            (List { ids: Some(vec![plain, ended, job(99).id]), ..List::default() }, vec![ended, plain]),
            (List { ids: Some(vec![]), ..List::default() }, vec![]),
        ] {
            assert_eq!(listed(&store, list.clone()).await, expected, "{list:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn pages_are_stable_while_jobs_are_added() {
    on_each(async |store| {
        let label = |spec: &mut Spec| {
            spec.labels.insert("team".into(), "a".into());
        };
        let mut expected = Vec::new();
        for n in 0..10 {
            // Two of each moment: the id decides.
            let mut record = job_with(n, rules(), NOW, label);
            record.created_at = NOW + n / 2;
            expected.push((record.created_at, added(&store, record).await.id));
        }
        expected.sort_unstable();
        expected.reverse();
        let mut newer = 100;
        for labels in [BTreeMap::new(), BTreeMap::from([("team".to_owned(), "a".to_owned())])] {
            // From the newest of the ten on.
            let (mut seen, mut before) = (Vec::new(), Some((NOW + 5, JobId::from_bytes([0; 16]))));
            loop {
                let list = List { before, labels: labels.clone(), limit: 3, ..List::default() };
                let page = store.list(&list).await.expect("listed");
                seen.extend(page.iter().map(|record| (record.created_at, record.id)));
                added(&store, job_with(newer, rules(), NOW, label)).await;
                newer += 1;
                let Some(last) = page.last() else { break };
                before = Some((last.created_at, last.id));
            }
            assert_eq!(seen, expected);
        }
    })
    .await;
}

#[tokio::test]
async fn text_is_listed_only_if_it_is_asked_for() {
    on_each(async |store| {
        let mut record = added(&store, job(1)).await;
        happens(&store, &mut record, Event::Claim, at(NOW + 10)).await;
        happens(&store, &mut record, Event::Of(1, says("half")), at(NOW + 20)).await;
        for (text, expected) in [(true, "half"), (false, "")] {
            let page = store.list(&List { text, limit: 1, ..List::default() }).await.expect("listed");
            assert_eq!(page[0].job.text.as_str(), expected);
        }
    })
    .await;
}
