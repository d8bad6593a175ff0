//! What the service counts, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::wire::JobState;

/// Requests of one kind: method, route, status.
type Kind = (String, String, u16);

#[derive(Clone, Copy, Default)]
struct Sum {
    count: u64,
    seconds: f64,
}

/// Counters since the start of the process.
pub struct Metrics {
    /// Programmable bootstraps.
    pub pbs: AtomicU64,
    /// Bytes of bodies received whole.
    pub received: AtomicU64,
    start: Instant,
    requests: Mutex<BTreeMap<Kind, Sum>>,
    jobs: Mutex<BTreeMap<&'static str, Sum>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            pbs: zero(),
            received: zero(),
            start: Instant::now(),
            requests: Mutex::default(),
            jobs: Mutex::default(),
        }
    }
}

/// Resident memory of this process in bytes; 0 where the system does not say.
#[must_use]
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn metric(out: &mut String, name: &str, kind: &str, help: &str, values: &[(String, f64)]) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    values.iter().for_each(|(labels, value)| {
        let _ = writeln!(out, "{name}{labels} {value}");
    });
}

impl Metrics {
    /// Counts a request. `route` is the pattern, not the path: there are few of them.
    pub fn request(&self, method: &str, route: &str, status: u16, elapsed: Duration) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = requests.entry((method.to_owned(), route.to_owned(), status)).or_default();
        sum.count += 1;
        sum.seconds += elapsed.as_secs_f64();
    }

    /// Counts a job that ended after a last run of so many seconds.
    pub fn ended(&self, state: JobState, seconds: f64) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = jobs.entry(state.name()).or_default();
        sum.count += 1;
        sum.seconds += seconds;
    }

    /// All of it. `load` has the jobs that wait and those at work, `stored` the number of jobs in each state.
    #[must_use]
    pub fn text(&self, load: (usize, usize), stored: &[(String, u64)]) -> String {
        let one = |value: f64| vec![(String::new(), value)];
        let mut out = String::new();
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let labelled = |pick: fn(&Sum) -> f64| -> Vec<(String, f64)> {
            let label = |(method, route, status): &Kind| {
                format!("{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}}")
            };
            requests.iter().map(|(kind, sum)| (label(kind), pick(sum))).collect()
        };
        metric(&mut out, "thex_requests_total", "counter", "HTTP requests.", &labelled(|s| s.count as f64));
        metric(&mut out, "thex_request_seconds_total", "counter", "Seconds spent on them.", &labelled(|s| s.seconds));
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let ended = |pick: fn(&Sum) -> f64| -> Vec<(String, f64)> {
            jobs.iter().map(|(state, sum)| (format!("{{state=\"{state}\"}}"), pick(sum))).collect()
        };
        metric(
            &mut out,
            "thex_jobs_ended_total",
            "counter",
            "Jobs that ended since the start.",
            &ended(|s| s.count as f64),
        );
        metric(&mut out, "thex_job_seconds_total", "counter", "Seconds of their last runs.", &ended(|s| s.seconds));
        let stored: Vec<_> = stored.iter().map(|(state, n)| (format!("{{state=\"{state}\"}}"), *n as f64)).collect();
        metric(&mut out, "thex_jobs", "gauge", "Jobs in the store, by state.", &stored);
        metric(&mut out, "thex_queue_length", "gauge", "Jobs that wait.", &one(load.0 as f64));
        metric(&mut out, "thex_jobs_running", "gauge", "Jobs at work.", &one(load.1 as f64));
        let pbs = self.pbs.load(Ordering::Relaxed) as f64;
        metric(&mut out, "thex_pbs_total", "counter", "Programmable bootstraps.", &one(pbs));
        let received = self.received.load(Ordering::Relaxed) as f64;
        metric(&mut out, "thex_received_bytes_total", "counter", "Bytes of keys and inputs received.", &one(received));
        metric(&mut out, "process_resident_memory_bytes", "gauge", "Resident memory.", &one(resident_bytes() as f64));
        metric(&mut out, "thex_uptime_seconds", "gauge", "Since the start.", &one(self.start.elapsed().as_secs_f64()));
        out
    }
}
