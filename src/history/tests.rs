use super::ring::{Cell, Row, Step};
use super::store::Store;
use super::*;

const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

fn query(since: &str, metrics: &[&str], gpu: Option<&str>) -> HistoryQuery {
    HistoryQuery {
        metrics: metrics.iter().map(|metric| (*metric).to_owned()).collect(),
        gpu: gpu.map(str::to_owned),
        since: since.parse().unwrap(),
        until: "now".parse().unwrap(),
        step_seconds: None,
    }
}

/// Rings of the last hour, without its second half.
fn recorded(directory: &std::path::Path, subjects: &[Subject]) {
    let mut store = Store::new(directory.to_owned());
    let last = Step::Fine.slot(NOW) - 180;
    for slot in last - 180..last {
        for subject in subjects {
            let cell = Cell { average: 2.0, peak: 3.0 };
            let cells = vec![cell; subject.table().columns().len()];
            store.write(subject, &Row { slot, flags: 0, count: 2, cells }).unwrap();
        }
    }
}

fn asked(directory: &std::path::Path, query: &HistoryQuery, is_cluster: bool) -> Result<History, Error> {
    answer(directory, query, is_cluster, "a".parse().unwrap(), NOW)
}

#[test]
fn an_answer_has_the_rows_of_each_subject_and_names_the_gap() {
    let dir = tempfile::tempdir().unwrap();
    let gpu = |name: &str| Subject::Gpu(name.to_owned());
    recorded(dir.path(), &[Subject::Host, Subject::Cluster, gpu("GPU-1"), gpu("GPU-2")]);
    let found = asked(dir.path(), &query("-1h", &["cores.utilized", "gpu.power"], None), false).unwrap();
    let names: Vec<_> = found.series.iter().map(|line| (line.metric.as_str(), line.gpu.as_deref())).collect();
    let expected = [("cores.utilized", None), ("gpu.power", Some("GPU-1")), ("gpu.power", Some("GPU-2"))];
    assert_eq!(names, expected);
    assert_eq!((found.step_seconds, found.source_step_seconds), (10, 10));
    for line in &found.series {
        assert_eq!(line.average.len(), 359);
        assert_eq!((line.average[10], line.peak[10], line.average[300]), (Some(2.0), Some(3.0), None));
    }
    assert_eq!(found.gaps.len(), 1);
    assert_eq!(found.gaps[0].until.since(found.gaps[0].since).as_secs(), 1790);
    let cluster = asked(dir.path(), &query("-30d", &[], None), true).unwrap();
    assert_eq!((cluster.source_step_seconds, cluster.series.len()), (300, 6));
    assert_eq!(cluster.series[0].average.iter().flatten().count(), 1);
}

#[test]
fn a_gpu_that_is_not_known_and_too_many_series_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let gpus: Vec<Subject> = (0..3).map(|i| Subject::Gpu(format!("GPU-{i}"))).collect();
    recorded(dir.path(), &gpus);
    let told = |query: &HistoryQuery| asked(dir.path(), query, false).unwrap_err().to_string();
    assert!(told(&query("-1h", &[], Some("GPU-9"))).starts_with("gpu: `GPU-9` is not the UUID of a GPU"));
    let all: Vec<&str> = Table::Gpu.columns().iter().map(|column| column.metric).collect();
    assert!(told(&query("-1h", &all, None)).starts_with("metric: 18 series; expected at most 16"));
    assert_eq!(asked(dir.path(), &query("-1h", &[], Some("GPU-1")), false).unwrap().series.len(), 6);
    assert!(asked(dir.path(), &query("-1h", &["cores.utilized"], None), false).is_ok(), "rows that are not there");
}

#[test]
fn a_subject_is_known_by_the_name_of_its_file() {
    for subject in [Subject::Host, Subject::Cluster, Subject::Gpu("MIG-GPU-b5a0/1/0".to_owned())] {
        assert_eq!(Subject::of_file_name(&subject.file_name()), Some(subject));
    }
    assert_eq!(Subject::of_file_name("other"), None);
}
