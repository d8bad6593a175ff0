//! The service and its client, by the program: a round trip, what is refused, kills, the page in a real browser.
//!
//! THEX_JOBS and THEX_KILLS make the test of kills larger (100 and 10 in the issue), THEX_REQUESTS that of many requests. The
//! browser is Chromium, headless; where there is none its test says so and passes, unless `THEX_BROWSER=required`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thex_circuit::ClientBundle;
use thex_circuit::file::digest;
use thex_runtime::client::{Named, Rounding, decrypt, encrypt};
use thex_runtime::{ClientKey, EncryptedOutputs, keys, labels, text};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(path)
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn thex(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_thex")).args(arguments).output().unwrap()
}

/// The tiny text model in a folder to serve, and keys for it.
struct Fixture {
    folder: tempfile::TempDir,
    bundle: ClientBundle,
    client_key: ClientKey,
    server_key: Vec<u8>,
}

impl Fixture {
    fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    fn circuit(&self) -> &str {
        &self.bundle.circuit
    }

    fn key(&self) -> String {
        digest(&self.server_key)
    }

    fn sample(&self, words: &str) -> Vec<Named> {
        text::tokenize(&self.bundle, words).unwrap().inputs
    }

    /// The bytes of an encrypted input.
    fn input(&self, words: &str, key: &ClientKey) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new_in(self.folder.path()).unwrap();
        encrypt(&self.bundle, key, &self.sample(words)).unwrap().0.save(file.path()).unwrap();
        std::fs::read(file.path()).unwrap()
    }

    /// The class that an encrypted result says.
    fn label(&self, result: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new_in(self.folder.path()).unwrap();
        std::fs::write(file.path(), result).unwrap();
        let outputs = EncryptedOutputs::load(file.path(), &self.bundle.parameters).unwrap();
        let values = decrypt(&self.bundle, &self.client_key, &outputs, Rounding::Modelled).unwrap();
        let label = labels::classify(&self.bundle.interface.labels, &values).unwrap().json();
        label.as_str().unwrap().to_owned()
    }
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("models");
    std::fs::create_dir(&models).unwrap();
    let path = |p: PathBuf| p.to_str().unwrap().to_owned();
    let output = thex(&[
        "compile",
        &path(repository("models/tiny_text.onnx")),
        "--calibration",
        &path(repository("data/tiny_text_calibration.npz")),
        "--tokenizer",
        &path(repository("data/tiny_tokenizer.json")),
        "--labels",
        &path(repository("data/tiny_labels.txt")),
        "-o",
        &path(models.join("tiny")),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bundle = ClientBundle::load(&models.join("tiny.client")).unwrap();
    let (client_key, server_key) = keys::generate(&bundle, Some(1)).unwrap();
    let file = folder.path().join("server.key");
    server_key.save(&file).unwrap();
    Fixture { bundle, client_key, server_key: std::fs::read(file).unwrap(), folder }
});

/// A server, killed at the end.
struct Server {
    child: Child,
    url: String,
    log: Arc<Mutex<String>>,
}

impl Server {
    fn start(data: &Path, more: &[&str]) -> Self {
        let models = FIXTURE.models();
        let mut child = Command::new(env!("CARGO_BIN_EXE_thex"))
            .args(["serve", models.to_str().unwrap(), "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"])
            .args(["--log", "json"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        let (log, stderr) = (Arc::new(Mutex::new(String::new())), child.stderr.take().unwrap());
        let sink = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                sink.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        if !url.starts_with("http") {
            std::thread::sleep(Duration::from_millis(200));
            let log = log.lock().unwrap().clone();
            panic!("the server did not start: {log}");
        }
        Self { child, url: url.trim().to_owned(), log }
    }

    fn address(&self) -> &str {
        self.url.split_once("//").unwrap().1
    }

    fn call(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        call(self.address(), method, path, &[], body)
    }

    fn put_key(&self) -> Answer {
        self.call("PUT", &format!("/v1/keys/{}", FIXTURE.key()), &FIXTURE.server_key)
    }

    fn submit(&self, id: &str, input: &[u8]) -> Answer {
        self.call("PUT", &job_path(id), input)
    }

    /// The last status of a job.
    fn wait(&self, id: &str) -> Value {
        let start = Instant::now();
        loop {
            let status = self.call("GET", &format!("/v1/jobs/{id}"), &[]).json();
            if !["queued", "running"].contains(&status["state"].as_str().unwrap()) {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "{status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("{}", self.log.lock().unwrap());
        }
    }
}

fn job_path(id: &str) -> String {
    format!("/v1/jobs/{id}?circuit={}&key={}", FIXTURE.circuit(), FIXTURE.key())
}

/// The answer to a request.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Status and code of a refusal.
    fn refusal(&self) -> (u16, String) {
        let body = self.json();
        assert!(body["message"].as_str().unwrap().len() > 20, "{body}");
        (self.status, body["code"].as_str().unwrap().to_owned())
    }
}

fn parse(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| panic!("no answer: {bytes:?}"));
    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = if head.contains("transfer-encoding: chunked") {
        dechunk(&bytes[end + 4..])
    } else {
        bytes[end + 4..].to_vec()
    };
    Answer { status, head, body }
}

fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = bytes.windows(2).position(|w| w == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            break;
        }
        out.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 4 + length..];
    }
    out
}

fn head(method: &str, path: &str, headers: &[&str]) -> String {
    let more: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n")
}

fn call(address: &str, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let length = format!("Content-Length: {}", body.len());
    let headers = [headers, &[length.as_str()]].concat();
    stream.write_all(head(method, path, &headers).as_bytes()).unwrap();
    let _ = stream.write_all(body);
    parse(&mut stream)
}

const POSITIVE: &str = "The film was great fun!";

/// Passes bytes on and keeps what the client sends.
fn recorder(target: String) -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, sent) = (listener.local_addr().unwrap().to_string(), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&sent);
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut server = TcpStream::connect(&target).unwrap();
            let (mut back, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            let kept = Arc::clone(&kept);
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut back, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || {
                let mut chunk = vec![0; 1 << 16];
                while let Ok(n @ 1..) = client.read(&mut chunk) {
                    kept.lock().unwrap().extend_from_slice(&chunk[..n]);
                    let _ = server.write_all(&chunk[..n]);
                }
                let _ = server.shutdown(Shutdown::Write);
            });
        }
    });
    (address, sent)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w[0] == needle[0] && w == needle)
}

#[test]
fn the_client_predicts_and_its_secret_never_leaves() {
    let (data, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Server::start(data.path(), &[]);
    let (proxy, sent) = recorder(server.address().to_owned());
    let (url, keys) = (format!("http://{proxy}"), home.path().to_str().unwrap().to_owned());
    let predict = || thex(&["client", "--server", &url, "predict", "--text", POSITIVE, "--keys", &keys, "--json"]);
    for first in [true, false] {
        let output = predict();
        let (stderr, stdout) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{stderr}");
        assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["label"], "positive");
        assert_eq!(stderr.contains("sending the server key"), first, "{stderr}");
    }
    let home = home.path().join(&FIXTURE.circuit()[..16]);
    let (secret, public) =
        (std::fs::read(home.join("client.key")).unwrap(), std::fs::read(home.join("server.key")).unwrap());
    let sent = sent.lock().unwrap();
    assert!(contains(&sent, &public[public.len() / 2..][..64]), "the recorder hears");
    // Words of the two secret keys, 32 bits each of which no two samples agree by chance.
    for start in [2048, 5000, 9000, 16000, secret.len() - 256] {
        assert!(!contains(&sent, &secret[start..start + 256]), "a part of client.key was sent");
    }
    assert!(!contains(&sent, POSITIVE.as_bytes()));
    assert_eq!(std::fs::read_dir(home.join("jobs")).unwrap().count(), 0);
}

/// Requests that are wrong, each with its status and code; and nobody else is disturbed by them.
#[test]
fn what_is_wrong_is_said() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--idle", "1", "--client-jobs", "1"]);
    let (nothing, no_circuit) = ("0".repeat(64), format!("/v1/jobs/a?circuit={0}&key={0}", "0".repeat(64)));
    let input = FIXTURE.input(POSITIVE, &FIXTURE.client_key);
    let garbage = vec![7; 1000];
    let refused = |method: &str, path: &str, body: &[u8]| server.call(method, path, body).refusal();
    let code = |status: u16, code: &str| (status, code.to_owned());
    assert_eq!(refused("GET", "/v1/nothing", &[]), code(404, "TX0601"));
    assert_eq!(refused("POST", "/v1/jobs", &[]), code(405, "TX0011"));
    assert_eq!(refused("GET", &format!("/v1/circuits/{nothing}"), &[]), code(404, "TX0601"));
    assert_eq!(refused("PUT", &no_circuit, &input), code(404, "TX0601"));
    assert_eq!(refused("PUT", "/v1/jobs/a", &input), code(400, "TX0011"));
    assert_eq!(refused("PUT", &job_path("no%20id"), &input), code(400, "TX0011"));
    assert_eq!(refused("PUT", "/v1/keys/short", &garbage), code(400, "TX0011"));
    assert_eq!(refused("PUT", &format!("/v1/keys/{nothing}"), &garbage), code(400, "TX0605"));
    assert_eq!(refused("PUT", &format!("/v1/keys/{}", digest(&garbage)), &garbage), code(422, "TX0002"));
    assert_eq!(refused("PUT", &format!("/v1/keys/{}", digest(&input)), &input), code(422, "TX0002"));
    assert_eq!(refused("PUT", &job_path("a"), &input), code(404, "TX0601"), "the key is not registered yet");
    bad_bodies(&server);

    assert_eq!(server.put_key().status, 201);
    assert_eq!(server.put_key().status, 200);
    assert_eq!(refused("PUT", &job_path("a"), &garbage), code(422, "TX0002"));
    assert_eq!(refused("PUT", &job_path("a"), &vec![7; 1 << 20]), code(413, "TX0603"));
    let other = ClientKey::generate(&FIXTURE.bundle, Some(2)).unwrap();
    assert_eq!(refused("PUT", &job_path("a"), &FIXTURE.input(POSITIVE, &other)), code(422, "TX0003"));
    assert_eq!(server.call("GET", "/v1/jobs", &[]).json(), json!([]));

    assert_eq!(server.submit("a", &input).status, 201);
    assert_eq!(server.submit("a", &input).status, 200, "the same id and input is the same job");
    let second = FIXTURE.input(POSITIVE, &FIXTURE.client_key);
    assert_eq!(server.submit("a", &second).refusal(), code(409, "TX0607"));
    let full = server.submit("b", &second);
    assert_eq!(full.refusal(), code(429, "TX0606"));
    assert!(full.head.contains("retry-after: "));
    assert_eq!(refused("GET", "/v1/jobs/a/result", &[]), code(409, "TX0607"));
    assert_eq!(refused("DELETE", "/v1/jobs/a", &[]), code(409, "TX0607"));
    assert_eq!(refused("DELETE", &format!("/v1/keys/{}", FIXTURE.key()), &[]), code(409, "TX0607"));
    assert_eq!(server.wait("a")["state"], "done");
    assert_eq!(FIXTURE.label(&server.call("GET", "/v1/jobs/a/result", &[]).body), "positive");

    assert_eq!(server.submit("b", &second).status, 201);
    let cancelled = server.call("PUT", "/v1/jobs/b/cancel", &[]).json();
    assert_eq!(cancelled["state"], "cancelled");
    assert_eq!(server.submit("b", &second).json()["state"], "cancelled", "a cancelled job is not run by asking again");
    assert_eq!(server.call("DELETE", "/v1/jobs/b", &[]).status, 204);
    assert_eq!(refused("GET", "/v1/jobs/b", &[]), code(404, "TX0601"));
    assert_eq!(std::fs::read_dir(data.path().join("tmp")).unwrap().count(), 0, "nothing is left of refused bodies");
}

/// Bodies that end early, stall, or lie about their length.
fn bad_bodies(server: &Server) {
    let path = format!("/v1/keys/{}", FIXTURE.key());
    let open = |headers: &[&str], part: &[u8]| {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(head("PUT", &path, headers).as_bytes()).unwrap();
        stream.write_all(part).unwrap();
        stream
    };
    let large = format!("Content-Length: {}", 1_u64 << 40);
    assert_eq!(parse(&mut open(&[&large], &[])).refusal(), (413, "TX0603".to_owned()));
    let mut half = open(&["Content-Length: 1000000"], &[7; 1000]);
    half.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    let _ = half.read_to_end(&mut rest);
    // No byte for a second: `--idle`.
    assert_eq!(parse(&mut open(&["Content-Length: 1000000"], &[7; 1000])).refusal(), (408, "TX0604".to_owned()));
    stalled_reader(server);
    // Half a header, for ever, keeps one socket busy and nobody else.
    let mut never = TcpStream::connect(server.address()).unwrap();
    never.write_all(b"GET /v1/hea").unwrap();
    assert_eq!(server.call("GET", "/v1/health", &[]).json()["status"], "ok");
}

/// Asks for more and more, and reads none of it: the server lets go.
fn stalled_reader(server: &Server) {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let start = Instant::now();
    loop {
        match stream.write(b"GET /app.js HTTP/1.1\r\nHost: localhost\r\n\r\n") {
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
            _ => assert!(start.elapsed() < Duration::from_secs(60), "the server waits for ever"),
        }
    }
}

#[test]
fn tokens_tls_and_room() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let make = |client: &str, days: &[&str]| {
        let output = thex(&[&["token", client, "--tokens", &path("tokens.json")], days].concat());
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let (good, old) = (make("alice", &[]), make("alice", &["--days", "0"]));
    let files =
        |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/serve").join(name).to_str().unwrap().to_owned();
    let (chain, key, ca) = (files("chain.pem"), files("test-only-key.pem"), files("ca.pem"));
    let more = ["--tokens", &path("tokens.json"), "--storage", "0.01"];
    let server = Server::start(&folder.path().join("data"), &more);
    let asked = |token: &str| {
        let header = format!("Authorization: Bearer {token}");
        call(server.address(), "GET", "/v1/circuits", &[&header], &[])
    };
    assert_eq!(asked(&good).status, 200);
    assert_eq!((asked(&old).refusal(), asked("x").refusal()), ((401, "TX0602".into()), (401, "TX0602".into())));
    assert_eq!(server.call("GET", "/v1/jobs", &[]).refusal(), (401, "TX0602".to_owned()));
    assert_eq!(server.call("GET", "/metrics", &[]).status, 401);
    assert_eq!(server.call("GET", "/v1/health", &[]).json()["tokens"], true);
    let header = format!("Authorization: Bearer {good}");
    let full = call(server.address(), "PUT", &format!("/v1/keys/{}", FIXTURE.key()), &[&header], &FIXTURE.server_key);
    assert_eq!(full.refusal(), (507, "TX0608".to_owned()));

    let tls = ["--tls-cert", &chain, "--tls-key", &key, "--tokens", &path("tokens.json")];
    let secure = Server::start(&folder.path().join("secure"), &tls);
    let url = secure.url.replace("127.0.0.1", "localhost");
    std::fs::write(folder.path().join("token"), &good).unwrap();
    let token = path("token");
    let list = |more: &[&str]| {
        thex(&[&["client", "--server", &url, "--token", &token, "--patience", "0"], more, &["circuits"]].concat())
    };
    let trusted = list(&["--ca", &ca]);
    assert!(trusted.status.success(), "{}", String::from_utf8_lossy(&trusted.stderr));
    assert!(String::from_utf8_lossy(&trusted.stdout).contains("tiny"));
    let distrusted = list(&[]);
    assert_eq!(distrusted.status.code(), Some(7), "a certificate that nobody vouches for");
    assert!(String::from_utf8_lossy(&distrusted.stderr).contains("TX0610"));
}

#[test]
fn a_server_that_cannot_be_safe_does_not_start() {
    let data = tempfile::tempdir().unwrap();
    let (models, data) = (FIXTURE.models(), data.path().to_str().unwrap().to_owned());
    let fails = |folder: &str, more: &[&str], mention: &str| {
        let output = thex(&[&["serve", folder, "--data", &data], more].concat());
        let message = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
        assert_eq!(output.status.code(), Some(3), "{message}");
        assert!(message.contains("TX0011") && message.contains(mention), "{message}");
    };
    fails(models.to_str().unwrap(), &["--listen", "0.0.0.0:0"], "--tokens");
    fails(models.to_str().unwrap(), &["--listen", "nowhere.invalid:1"], "nowhere.invalid:1");
    fails(&data, &[], "holds no circuit");
    let server = Server::start(Path::new(&data), &[]);
    fails(models.to_str().unwrap(), &["--listen", "127.0.0.1:0"], "another server");
    drop(server);
}

/// Jobs across `kill -9` and restarts: every result there, every one right, none run again once its client has seen it.
#[test]
fn no_job_is_lost_by_kills() {
    let (jobs, kills) = (number("THEX_JOBS", 6), number("THEX_KILLS", 2));
    let data = tempfile::tempdir().unwrap();
    let more = ["--client-jobs", "1000"];
    let mut server = Server::start(data.path(), &more);
    assert_eq!(server.put_key().status, 201);
    let texts = [(POSITIVE, "positive"), ("The film was terrible and boring", "negative")];
    let inputs: Vec<Vec<u8>> = (0..jobs).map(|i| FIXTURE.input(texts[i % 2].0, &FIXTURE.client_key)).collect();
    for (i, input) in inputs.iter().enumerate() {
        assert_eq!(server.submit(&format!("job-{i}"), input).status, 201);
    }
    let ended = |server: &Server| {
        let list = server.call("GET", "/v1/jobs", &[]).json();
        assert_eq!(list.as_array().unwrap().len(), jobs);
        list.as_array()
            .unwrap()
            .iter()
            .filter(|j| j["state"] == "done")
            .map(|j| j["result"].to_string())
            .collect::<Vec<_>>()
    };
    for kill in 1..=kills {
        // In the middle of a job, somewhere along the way.
        let (wanted, start) = (kill * jobs / (kills + 1), Instant::now());
        while ended(&server).len() < wanted && start.elapsed() < Duration::from_secs(300) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let before = ended(&server);
        assert!(before.len() >= wanted && before.len() < jobs, "{} of {jobs} done at kill {kill}", before.len());
        server.signal("-KILL");
        server.child.wait().unwrap();
        server = Server::start(data.path(), &more);
        let after = ended(&server);
        assert!(before.iter().all(|result| after.contains(result)), "a result that was there has changed");
        // A client that does not know whether it was heard says it again.
        assert_eq!(server.submit("job-0", &inputs[0]).status, 200);
    }
    let mut restarted = 0;
    for i in 0..jobs {
        let status = server.wait(&format!("job-{i}"));
        assert_eq!(status["state"], "done", "{status}");
        restarted += usize::from(status["starts"].as_u64().unwrap() > 1);
        let result = server.call("GET", &format!("/v1/jobs/job-{i}/result"), &[]).body;
        assert_eq!(digest(&result), status["result"]["digest"].as_str().unwrap());
        assert_eq!(FIXTURE.label(&result), texts[i % 2].1, "job-{i}");
    }
    assert!(restarted >= 1 && restarted <= kills, "{restarted} jobs were interrupted by {kills} kills");
    println!("{jobs} jobs, {kills} kills, {restarted} interrupted and run again, all results right");
}

#[test]
fn a_server_that_is_told_to_end_keeps_its_jobs() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &[]);
    assert_eq!(server.put_key().status, 201);
    let inputs = [(); 3].map(|()| FIXTURE.input(POSITIVE, &FIXTURE.client_key));
    for (i, input) in inputs.iter().enumerate() {
        assert_eq!(server.submit(&format!("{i}"), input).status, 201);
    }
    let mut events = TcpStream::connect(server.address()).unwrap();
    events.write_all(head("GET", "/v1/jobs/2/events", &[]).as_bytes()).unwrap();
    server.signal("-TERM");
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let told = String::from_utf8(parse(&mut events).body).unwrap();
    assert!(!told.contains("event: end"), "the stream ends without an end of the job: {told}");
    let log = server.log.lock().unwrap().clone();
    assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");

    let server = Server::start(data.path(), &[]);
    let events = server.call("GET", "/v1/jobs/2/events", &[]);
    let told = String::from_utf8(events.body).unwrap();
    assert!(
        events.head.contains("text/event-stream") && told.contains("event: progress") && told.contains("event: end"),
        "{told}"
    );
    let last: Value = serde_json::from_str(told.rsplit("data: ").next().unwrap().trim()).unwrap();
    assert_eq!((&last["state"], &last["progress"]["pbs_done"]), (&json!("done"), &last["progress"]["pbs_total"]));
    assert_eq!(FIXTURE.label(&server.call("GET", "/v1/jobs/2/result", &[]).body), "positive");
}

#[test]
fn the_document_describes_the_routes() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let document = server.call("GET", "/v1/openapi.json", &[]).json();
    let paths = document["paths"].as_object().unwrap();
    let mut operations = 0;
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            operations += 1;
            let path = path.replace("{digest}", &"0".repeat(64)).replace("{id}", "none");
            let answer = server.call(&method.to_uppercase(), &path, &[]);
            assert!(![405, 500].contains(&answer.status), "{method} {path}: {}", answer.status);
            // A path without a route has another message.
            assert!(!String::from_utf8_lossy(&answer.body).contains("nothing under this path"), "{method} {path}");
        }
    }
    assert_eq!(operations, 17);
    for name in ["JobStatus", "CircuitInfo", "ErrorBody", "KeyStatus"] {
        assert!(document["components"]["schemas"][name]["properties"].is_object(), "{name}");
    }
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
}

fn resident(server: &Server) -> f64 {
    let text = String::from_utf8(server.call("GET", "/metrics", &[]).body).unwrap();
    let line = text.lines().find(|l| l.starts_with("process_resident_memory_bytes")).unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// Requests without cryptography, over new connections; memory does not grow with them.
#[test]
fn many_requests_leave_memory_flat() {
    let total = number("THEX_REQUESTS", 1000);
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let garbage = vec![7; 100_000];
    let upload = format!("/v1/keys/{}", "0".repeat(64));
    let round = |requests: usize| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (server, garbage, upload) = (&server, &garbage, &upload);
                scope.spawn(move || {
                    for i in 0..requests / 4 {
                        let answer = match (i + worker) % 4 {
                            0 => server.call("GET", "/v1/circuits", &[]),
                            1 => server.call("GET", "/v1/jobs/none", &[]),
                            2 => server.call("PUT", upload, garbage),
                            _ => server.call("GET", "/", &[]),
                        };
                        assert!([200, 404, 400].contains(&answer.status), "{}", answer.status);
                    }
                });
            }
        });
        requests as f64 / start.elapsed().as_secs_f64()
    };
    round(400);
    let before = resident(&server);
    let rate = round(total);
    let after = resident(&server);
    println!("{total} requests, {rate:.0}/s; resident {:.1} MB, then {:.1} MB", before / 1e6, after / 1e6);
    assert!(after < before + 8e6, "resident memory grew from {before} to {after} bytes");
}

/// Chromium, wherever it is.
fn browser() -> Option<PathBuf> {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    names.iter().flat_map(|name| folders.iter().map(move |f| f.join(name))).find(|path| path.is_file())
}

/// The document that a browser makes of a page after some seconds, and what it complains of.
fn look(browser: &Path, url: &str, size: &str) -> (String, String) {
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            "--virtual-time-budget=4000",
            "--enable-logging=stderr",
        ])
        .arg(format!("--window-size={size}"))
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(url)
        .output()
        .unwrap();
    let complaints: Vec<String> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter(|l| l.contains(":CONSOLE") || l.contains("Refused to"))
        .map(str::to_owned)
        .collect();
    (String::from_utf8_lossy(&output.stdout).into_owned(), complaints.join("\n"))
}

#[test]
fn the_page_works_in_a_browser() {
    let Some(browser) = browser() else {
        assert!(std::env::var_os("THEX_BROWSER").is_none(), "THEX_BROWSER is set, and there is no chromium");
        println!("skipped: there is no chromium");
        return;
    };
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    assert_eq!(server.put_key().status, 201);
    assert_eq!(server.submit("first", &FIXTURE.input(POSITIVE, &FIXTURE.client_key)).status, 201);
    server.wait("first");
    let circuit = server.call("GET", &format!("/v1/circuits/{}", FIXTURE.circuit()), &[]).json();
    let pbs = circuit["pbs_count"].as_u64().unwrap();
    let views = [
        (
            "#/".to_owned(),
            vec![
                "data-model=\"".to_owned(),
                "data-job=\"first\"".into(),
                "state done".into(),
                "0 running, 0 waiting".into(),
            ],
        ),
        (
            format!("#/model/{}", FIXTURE.circuit()),
            vec![
                format!("<b data-field=\"pbs\">{pbs}</b>"),
                "data-layer=\"".into(),
                "data-tensor=\"".into(),
                "Where the output error comes from".into(),
            ],
        ),
        ("#/job/first".to_owned(), vec![format!("<b data-field=\"pbs\">{pbs} / {pbs}</b>"), "Forget this job".into()]),
    ];
    for size in ["1280,900", "400,800"] {
        for (hash, wanted) in &views {
            let (dom, complaints) = look(&browser, &format!("{}/{hash}", server.url), size);
            assert_eq!(complaints, "", "{hash}");
            for part in wanted {
                assert!(dom.contains(part), "{hash} at {size} has no {part}: {dom}");
            }
            assert!(dom.contains("<p id=\"problem\" role=\"alert\" hidden"), "{hash} shows a problem");
        }
    }
    let (dom, _) = look(&browser, &format!("{}/#/job/none", server.url), "800,600");
    assert!(dom.contains("TX0601"), "a job that is not there is said: {dom}");
    let page = server.call("GET", "/", &[]);
    assert!(page.head.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{}", page.head);
    let script = String::from_utf8(server.call("GET", "/app.js", &[]).body).unwrap();
    let text = String::from_utf8(page.body).unwrap() + &script;
    for remote in ["https://", "innerHTML", "onclick=\"", "eval("] {
        assert!(!text.contains(remote), "the page mentions {remote}");
    }
}
