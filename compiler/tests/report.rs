//! The report: its data against the circuit, and its page in a real browser.
//!
//! The browser is Chromium, headless. Where there is none its test says so and passes, unless `THEX_BROWSER=required`, as in
//! `.ci/run`, which installs one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;
use thex::report::data::{ReportData, SUFFIX};
use thex_circuit::Circuit;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn thex(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_thex")).args(arguments).output().unwrap()
}

/// The digits model under `the-x`, compiled, and its report.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn circuit(&self) -> (Circuit, String) {
        Circuit::load(&self.path("m.circuit")).unwrap()
    }

    fn data(&self) -> ReportData {
        ReportData::load(&self.path(&format!("m{SUFFIX}")), &self.circuit().1).unwrap()
    }

    fn page(&self) -> String {
        std::fs::read_to_string(self.path("m.html")).unwrap()
    }
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let fixture = Fixture { folder: tempfile::tempdir().unwrap() };
    let (model, data) = (repository("tests/models/digits_vit.onnx"), repository("tests/data/digits_calibration.npz"));
    let (out, page) = (fixture.path("m"), fixture.path("m.html"));
    let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
    let (model, data, out, page) = (text(&model), text(&data), text(&out), text(&page));
    for arguments in [
        &["compile", &model, "--calibration", &data, "--profile", "the-x", "-o", &out][..],
        &["report", &out, "-o", &page],
    ] {
        let output = thex(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    fixture
});

#[test]
fn every_instruction_belongs_to_one_tensor() {
    let (circuit, data) = (FIXTURE.circuit().0, FIXTURE.data());
    let mut instructions: Vec<usize> = data.nodes.iter().flat_map(|n| &n.steps).filter_map(|s| s.instruction).collect();
    instructions.sort_unstable();
    assert_eq!(instructions, (0..circuit.instructions.len()).collect::<Vec<_>>());
    let steps = || data.nodes.iter().flat_map(|n| &n.steps);
    assert_eq!(steps().map(|s| s.pbs).sum::<u64>(), circuit.pbs_count());
    assert_eq!(steps().map(|s| s.packs).sum::<u64>(), circuit.pack_count());
    for s in steps().filter(|s| s.op == "he-linear") {
        let ([least, median, greatest], largest) = (s.weight_bits.unwrap(), s.weight_log2.unwrap());
        assert!(s.delta_log2.is_some() && 2 <= least && least <= median && median <= greatest, "{s:?}");
        assert!((f64::from(greatest) - 2.0 - 1e-3..f64::from(greatest) - 1.0 + 1e-3).contains(&largest), "{s:?}");
    }
    assert!(steps().filter(|s| s.op != "decrypt").all(|s| s.noise_bits.is_some()));
}

/// What an argument carries comes on top of the noise of its own switch, which the circuit states.
#[test]
fn noise_only_grows_until_it_is_renewed() {
    let (circuit, data) = (FIXTURE.circuit().0, FIXTURE.data());
    let steps: Vec<_> = data.nodes.iter().flat_map(|n| &n.steps).collect();
    for step in steps.iter().filter(|s| s.op == "keyswitch") {
        let switch = circuit.provenance[step.instruction.unwrap()].noise_bits.unwrap();
        let total = step.noise_bits.unwrap();
        assert!(total > 0.0 && total < switch + 1e-3, "{}: {total} bits of {switch}", step.name);
    }
    let fresh =
        |op: &str| steps.iter().filter(|s| s.op == op).filter_map(|s| s.noise_bits).fold(f64::INFINITY, f64::min);
    assert!(fresh("encrypt") > 20.0);
}

/// What compilation simulates of the outputs: an error of the size that the model says, as for any circuit of the digits.
#[test]
fn the_model_is_held_against_a_simulation() {
    let data = FIXTURE.data();
    let pass = data.passes.iter().find(|p| p.name == "widen-for-noise").unwrap();
    let told: Vec<&String> = pass.notes.iter().filter(|n| n.starts_with("outputs err by ")).collect();
    let [line] = told[..] else { panic!("{told:?}") };
    let numbers: Vec<f64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    let [simulated, _, modelled] = numbers[..] else { panic!("{line}") };
    assert!(line.contains(" of 16 calibration samples") && (0.5..2.5).contains(&(simulated / modelled)), "{line}");
    assert!(!pass.notes.iter().any(|n| n.contains("times as much as the noise model says")), "{:?}", pass.notes);
}

#[test]
fn error_sources_add_up_to_the_predicted_error() {
    let (circuit, data) = (FIXTURE.circuit().0, FIXTURE.data());
    let total: f64 = data.error_sources.iter().map(|s| s.variance).sum();
    let predicted = circuit.info.predicted_output_error.unwrap();
    assert!((total.sqrt() / predicted - 1.0).abs() < 1e-3, "{} {predicted}", total.sqrt());
    assert!(data.error_sources.iter().all(|s| s.node.is_some()));
    assert!(data.error_sources.windows(2).all(|w| w[0].variance >= w[1].variance));
}

#[test]
fn ranges_hold_what_was_seen() {
    let data = FIXTURE.data();
    assert!(data.nodes.iter().filter(|n| !n.steps.is_empty()).all(|n| n.range.is_some()));
    for range in data.nodes.iter().filter_map(|n| n.range.as_ref()) {
        assert!(range.extent.0 <= range.seen.0 && range.seen.1 <= range.extent.1, "{range:?}");
        assert!(range.width.windows(2).all(|w| w[0] <= w[1]), "{range:?}");
        assert!(range.bars.len() <= thex::report::data::MOST_CHANNELS && !range.bars.is_empty());
        assert!(range.position.iter().all(|p| (0.0..=1.0).contains(p)), "{range:?}");
    }
}

#[test]
fn the_file_is_small_and_names_its_circuit() {
    let path = FIXTURE.path(&format!("m{SUFFIX}"));
    assert!(std::fs::metadata(&path).unwrap().len() < 500_000);
    let other = ReportData::load(&path, "another digest").unwrap_err();
    assert_eq!(other.code(), "TX0003");
    let cut = FIXTURE.path("cut.json");
    std::fs::write(&cut, &std::fs::read(&path).unwrap()[..1000]).unwrap();
    assert_eq!(ReportData::load(&cut, "").unwrap_err().code(), "TX0002");
}

/// The first layer, as the page shows it: tensors, how they are computed, what was decided. Without figures.
#[test]
fn outline() {
    let data = FIXTURE.data();
    let mut outline = String::new();
    for node in data.nodes.iter().filter(|n| n.group == "layer 0") {
        let steps: Vec<&str> = node.steps.iter().map(|s| s.op.as_str()).collect();
        let notes: Vec<&str> = node.notes.iter().map(|n| n.pass.as_str()).collect();
        writeln!(outline, "{} = {} {:?}: {steps:?} {notes:?}", node.name, node.op, node.shape).unwrap();
    }
    insta::assert_snapshot!(outline);
}

#[test]
fn the_page_needs_nothing_but_itself() {
    let page = FIXTURE.page();
    for remote in ["http://", "https://", "src=", "href=", "@import", "url("] {
        let allowed = page.matches("http://www.w3.org/2000/svg").count();
        let count = page.matches(remote).count() - if remote == "http://" { allowed } else { 0 };
        assert_eq!(count, 0, "the page mentions {remote}");
    }
    assert_eq!(page.matches("</script>").count(), 2);
}

/// Chromium, wherever it is.
fn browser() -> Option<PathBuf> {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    names.iter().flat_map(|name| folders.iter().map(move |f| f.join(name))).find(|path| path.is_file())
}

/// Opens a page with scripts around it that watch and use it; what they saw.
fn probe(browser: &Path, page: &str, size: &str) -> Value {
    let watch = format!("<head><script>{}</script>", include_str!("report/watch.js"));
    let probe = format!("<script>{}</script></body>", include_str!("report/probe.js"));
    let path = FIXTURE.path(&format!("probe-{size}.html"));
    std::fs::write(&path, page.replacen("<head>", &watch, 1).replace("</body>", &probe)).unwrap();
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=4000"])
        .arg(format!("--window-size={size}"))
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", path.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, rest) =
        dom.split_once("<pre id=\"probe\">").unwrap_or_else(|| panic!("the page did not finish: {dom:.2000}"));
    let seen = rest.split_once("</pre>").unwrap().0.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    serde_json::from_str(&seen).unwrap()
}

#[test]
fn the_page_works_in_a_browser() {
    let Some(browser) = browser() else {
        assert!(std::env::var_os("THEX_BROWSER").is_none(), "THEX_BROWSER is set, and there is no chromium");
        println!("skipped: there is no chromium");
        return;
    };
    let (page, data) = (FIXTURE.page(), FIXTURE.data());
    let (start, end) = ("<script type=\"application/json\" id=\"report\">", "</script>");
    let json = page.split_once(start).unwrap().1.split_once(end).unwrap().0;
    let report: Value = serde_json::from_str(json).unwrap();
    for size in ["1280,900", "400,800"] {
        let seen = probe(&browser, &page, size);
        assert_eq!(seen["problems"], serde_json::json!([]));
        assert_eq!(seen["wide"], false, "the page scrolls sideways at {size}");
        check_numbers(&seen, &report["circuit"]);
        check_folding(&seen, &data);
        for (chart, shapes) in seen["charts"].as_object().unwrap() {
            assert!(shapes.as_u64().unwrap() > 2, "{chart} is empty");
        }
    }
}

/// Every number of the header, and the sums of the graph's rows, are those of the data.
fn check_numbers(seen: &Value, circuit: &Value) {
    let fields = seen["fields"].as_object().unwrap();
    assert!(fields.len() >= 5, "{fields:?}");
    for (name, text) in fields {
        let shown: f64 = text.as_str().unwrap().replace(',', "").parse().unwrap();
        let wanted = circuit[name].as_f64().unwrap();
        assert!((shown / wanted - 1.0).abs() < 5e-3, "{name}: the page shows {shown}, the data say {wanted}");
    }
    assert_eq!(seen["layerPbs"].as_u64(), circuit["pbs_count"].as_u64());
    assert_eq!(seen["nodePbs"].as_u64(), circuit["pbs_count"].as_u64());
}

fn check_folding(seen: &Value, data: &ReportData) {
    let count = data.nodes.len() as u64;
    assert_eq!(seen["folded"], 0);
    assert_eq!(seen["unfolded"].as_u64(), Some(count));
    assert_eq!(seen["details"].as_u64(), Some(count));
    assert_eq!(seen["detailsClosed"], 0);
    assert!(seen["edges"].as_u64().unwrap() >= count - 1);
    for layer in seen["layers"].as_array().unwrap() {
        let members = data.nodes.iter().filter(|n| n.group == layer["name"].as_str().unwrap()).count();
        assert_eq!(layer["unfolded"].as_u64(), Some(members as u64), "{layer}");
        assert_eq!(layer["expanded"], "true");
    }
}
