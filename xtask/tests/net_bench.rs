//! The benchmark against other systems, at its shortest: kernel routing and Weft over two transits.

use std::fs;

use serde_json::Value;
use xtask::{
    bench::{Options, peers},
    lab::registry,
    paths::Programs,
};

#[test]
fn systems_are_measured_and_removed() {
    xtask::needs_lab!();
    let file = |end: &str| {
        std::env::temp_dir().join(format!("weft-net-bench-{}.{end}", std::process::id()))
    };
    let (json, svg) = (file("json"), file("svg"));
    let options = Options {
        quick: true,
        only: vec!["kernel_2".into(), "weft_2".into()],
        json: Some(json.clone()),
        svg: Some(svg.clone()),
        ..Options::default()
    };
    let plan = peers::Plan::new(&options).unwrap();
    peers::run(&plan, &Programs::find().unwrap()).unwrap_or_else(|e| panic!("{e:#}"));
    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let chart = fs::read_to_string(&svg).unwrap();
    for name in ["kernel_2", "weft_2"] {
        let system = &report["systems"][name];
        assert_eq!(system["state"], "measured", "{system:#}");
        for figure in [
            "tcp1_up_gbps",
            "tcp1_down_gbps",
            "idle_tcp_p50_us",
            "idle_udp_p99_us",
        ] {
            let value = system["figures"][figure]["median"].as_f64();
            assert!(value.is_some_and(|v| v > 0.0), "{name} {figure}: {value:?}");
        }
        let machine = system["cpu_s_per_gb"]["machine"]["median"].as_f64();
        assert!(machine.is_some_and(|v| v > 0.0), "{system:#}");
    }
    let memory = report["systems"]["weft_2"]["idle_mb"].as_object().unwrap();
    assert_eq!(memory.len(), 4, "client, two transits, server: {memory:?}");
    // What was not part of the run is said to be missing, not left out.
    assert!(report["tcp1_vs_yggdrasil"].is_null());
    let why = report["missing"]["tcp1_vs_yggdrasil"].as_str().unwrap();
    assert!(why.contains("not part of this run"), "{why}");
    assert!(chart.contains("more transits"), "the chart has no hops");
    let own = std::process::id();
    let left = registry::list().unwrap();
    assert!(left.iter().all(|(record, _)| record.pid != own), "{left:?}");
    for file in [json, svg] {
        fs::remove_file(file).unwrap();
    }
}
