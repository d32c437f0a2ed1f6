//! iperf3 between two nodes.

use std::{
    net::IpAddr,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    lab::{node::Node, wait_for},
    term,
};

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From client to server.
    Up,
    /// From server to client.
    Down,
}

/// What iperf3 measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Gigabits per second at the receiver.
    pub gbps: f64,
    /// Segments sent again.
    pub retransmits: u64,
}

struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // It ends by itself after one client; this is for when there was none.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One TCP stream for `seconds` from `client` to `address` of `server`, or back.
///
/// # Errors
/// When iperf3 fails, with what it says.
pub fn tcp(client: &Node, server: &Node, address: IpAddr, seconds: u32, way: Way) -> Result<Rate> {
    const PORT: &str = "5201";
    let address = address.to_string();
    let mut serve = server.namespace().command("iperf3");
    serve.args(["--server", "--one-off", "--bind", &address, "--port", PORT]);
    serve
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut served = Served(serve.spawn().context("cannot start iperf3")?);
    let mut run = client.namespace().command("iperf3");
    run.args([
        "--client",
        &address,
        "--port",
        PORT,
        "--time",
        &seconds.to_string(),
        "--json",
    ]);
    run.args(["--connect-timeout", "5000"]);
    if way == Way::Down {
        run.arg("--reverse");
    }
    // The server may not listen yet when the client asks first.
    let text =
        wait_for(
            "iperf3's server to listen",
            Duration::from_secs(10),
            || match term::output_of(&mut run) {
                Ok(text) => Ok(Some(text)),
                Err(error) if served.0.try_wait()?.is_some() => Err(error),
                Err(_) => Ok(None),
            },
        )?;
    let json: Value = serde_json::from_str(&text).context("iperf3 wrote no JSON")?;
    let bits = json
        .pointer("/end/sum_received/bits_per_second")
        .and_then(Value::as_f64);
    let retransmits = json
        .pointer("/end/sum_sent/retransmits")
        .and_then(Value::as_u64)
        .unwrap_or(0);
    Ok(Rate {
        gbps: bits.context("iperf3's JSON has no rate")? / 1e9,
        retransmits,
    })
}
