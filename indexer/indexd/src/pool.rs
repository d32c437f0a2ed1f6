//! Follows the node's mempool, on a thread of its own, as long as the index has the node's tip.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tracing::warn;
use weft_source::mempool::MempoolAsker;
use weft_view::View;

use crate::status::Figures;

/// Pause between questions where nothing says that something changed.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause while the index is at another block than the node.
const SHORT: Duration = Duration::from_millis(5);
/// Pause after the node failed.
const LONG: Duration = Duration::from_secs(1);

/// Starts the thread. It ends some time after `stop` is set and [`View::nudge`] called.
pub fn follow(view: View, figures: Arc<Figures>, stop: Arc<AtomicBool>) -> Result<()> {
    let work = move || {
        let mut asker = MempoolAsker::new(view.chain());
        let mut failed = false;
        while !stop.load(Ordering::Relaxed) {
            let pause = match turn(&view, &mut asker) {
                Ok(pause) => {
                    failed = false;
                    pause
                }
                Err(e) => {
                    figures.pool_errors.fetch_add(1, Ordering::Relaxed);
                    if !failed {
                        warn!("the mempool cannot be followed: {e}");
                    }
                    failed = true;
                    // Nobody is kept waiting for what may never come.
                    view.settle();
                    LONG
                }
            };
            view.wait_for_nudge(pause);
        }
    };
    std::thread::Builder::new()
        .name("mempool".into())
        .spawn(work)
        .context("cannot start a thread for the mempool")?;
    Ok(())
}

fn turn(view: &View, asker: &mut MempoolAsker) -> weft_view::Result<Duration> {
    if !view.caught_up() {
        return Ok(PAUSE);
    }
    let Some(rpc) = view.rpc() else {
        view.settle();
        return Ok(LONG);
    };
    if view.wants_pool() {
        asker.ask_all_again();
    }
    let Some(delta) = asker.ask(rpc.client(), || view.pool_ids())? else {
        return Ok(if view.wants_pool() { SHORT } else { PAUSE });
    };
    if view.take_in(delta)? {
        return Ok(PAUSE);
    }
    asker.ask_all_again();
    Ok(SHORT)
}
