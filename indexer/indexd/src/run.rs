//! The verb `run`: opens everything, follows the source until it is told to stop, and tells how it
//! goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tracing::{error, info, warn};
use weft_chain::hash::hex;
use weft_source::choose;
use weft_store::Store;
use weft_view::View;

use crate::config::Config;
use crate::follow::{Event, Follower, Round};
use crate::serve::{Listening, Serving};
use crate::status::Figures;
use crate::terminal::Bar;
use crate::{metrics, pool};

/// How often the bar is drawn.
const DRAW: Duration = Duration::from_millis(250);
/// How often the status file and the log are written.
const REPORT: Duration = Duration::from_secs(5);
/// How long to wait for a new tip before looking whether to stop.
const WAIT: Duration = Duration::from_millis(500);
/// Longest pause after the source failed.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Runs until `stop` is set; with `once` until the index has the source's tip. While catching up `bar` tells how it goes,
/// lines of the log without one.
pub fn run(config: &Config, once: bool, bar: Option<Bar>, stop: &Arc<AtomicBool>) -> Result<()> {
    let chain = config.chain()?;
    let options = config.options();
    std::fs::create_dir_all(config.dir())
        .with_context(|| format!("cannot make {}", config.dir().display()))?;
    let store = Store::open(
        &config.database(),
        chain.params().genesis_hash(),
        options.clone(),
    )?;
    let figures = Arc::new(Figures::default());
    if let Some(tip) = store.tip() {
        figures.height.store(tip.height, Ordering::Relaxed);
        figures.written.store(tip.height, Ordering::Relaxed);
        info!(
            height = tip.height,
            hash = hex(&tip.hash),
            "the index is open"
        );
    } else {
        info!("the index is empty");
    }
    let view = View::new(chain, store.reader(), config.bounds());
    // A run that ends at the tip serves nobody.
    let serving = match once {
        true => None,
        false => Some(Serving::start(config, &view)?),
    };
    let mut listening = serving
        .as_ref()
        .map_or_else(Vec::new, |serving| serving.listening().to_vec());
    let servers = serving.as_ref().map(Serving::servers).unwrap_or_default();
    if let Some(listen) = config.metrics.listen {
        let address = metrics::serve(listen, figures.clone(), store.reader(), servers)
            .with_context(|| format!("cannot listen on {listen} for metrics (metrics.listen)"))?;
        info!(%address, "metrics");
        listening.push(Listening {
            service: "metrics".to_owned(),
            transport: "tcp".to_owned(),
            address,
        });
    }
    figures.set_listening(listening);
    let choice = choose(&config.settings(Duration::from_secs(20))?)?;
    announce(&figures, &choice);
    view.set_node(choice.source.clone(), choice.rpc.clone());
    let mut follower = Follower::new(store, choice.source, &options, stop.clone())?;
    if serving.is_some() {
        follower.set_view(view.clone());
        pool::follow(view.clone(), figures.clone(), stop.clone())?;
    }
    let mut report = Report::new(figures.clone(), config, bar);
    let mut pause = Duration::from_secs(1);
    loop {
        let round = follower.round(&mut |event| report.event(&event));
        report.tick(true);
        match round {
            Ok(Round::Stopped) => break,
            Ok(Round::More) => figures.set_error(None),
            Ok(Round::AtTip) => {
                report.at_tip();
                figures.set_error(None);
                view.set_caught_up();
                view.nudge();
                pause = Duration::from_secs(1);
                if once {
                    follower.store().settled();
                    break;
                }
                // Nothing changes until the source has another tip.
                while !stop.load(Ordering::Relaxed) {
                    let known = follower.store().tip().map_or([0; 32], |t| t.hash);
                    match follower.source().wait(&known, WAIT) {
                        Ok(false) => report.tick(false),
                        Ok(true) => break,
                        Err(e) if e.is_temporary() => break,
                        Err(e) => {
                            warn!("{e}");
                            break;
                        }
                    }
                }
            }
            Err(e) if once && !e.is_temporary() => return Err(e.into()),
            Err(e) => {
                // A damaged database or a full disk is not mended by trying again.
                if let crate::follow::FollowError::Store(_) = e {
                    return Err(e.into());
                }
                figures.source_errors.fetch_add(1, Ordering::Relaxed);
                figures.set_error(Some(e.to_string()));
                error!(pause_s = pause.as_secs(), "{e}");
                rest(pause, stop);
                pause = (pause * 2).min(MAX_PAUSE);
                // A node that is down for a while is waited for: its files alone do not tell what it
                // was told to leave, and there is no mempool without it.
                let had_rpc = view.rpc().is_some();
                if let Ok(choice) = choose(&config.settings(Duration::from_secs(5))?)
                    && (choice.rpc.is_some() || !had_rpc)
                {
                    announce(&figures, &choice);
                    view.set_node(choice.source.clone(), choice.rpc.clone());
                    follower.set_source(choice.source);
                }
            }
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    view.nudge();
    drop(serving);
    report.end();
    info!(height = figures.written.load(Ordering::Relaxed), "stopped");
    Ok(())
}

fn announce(figures: &Figures, choice: &weft_source::Choice) {
    info!(source = choice.source.describe(), "blocks come from here");
    for why in &choice.passed_over {
        info!("not used: {why}");
    }
    figures.set_source(choice.source.describe(), choice.passed_over.clone());
}

/// Sleeps, unless it is time to stop.
fn rest(time: Duration, stop: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Shows how it goes: a bar on a terminal, lines otherwise, the status file in any case.
struct Report {
    figures: Arc<Figures>,
    dir: std::path::PathBuf,
    bar: Option<Bar>,
    drawn: Instant,
    last: Instant,
    at_tip: bool,
}

impl Report {
    fn new(figures: Arc<Figures>, config: &Config, bar: Option<Bar>) -> Self {
        Self {
            figures,
            dir: config.dir().into(),
            bar,
            drawn: Instant::now(),
            last: Instant::now() - REPORT,
            at_tip: false,
        }
    }

    fn event(&mut self, event: &Event) {
        let figures = &self.figures;
        match event {
            Event::Progress {
                height,
                target,
                bytes,
                txs,
            } => {
                figures.height.store(*height, Ordering::Relaxed);
                figures.target.store(*target, Ordering::Relaxed);
                figures.blocks.fetch_add(1, Ordering::Relaxed);
                figures.bytes.fetch_add(*bytes, Ordering::Relaxed);
                figures.txs.fetch_add(*txs, Ordering::Relaxed);
                if self.drawn.elapsed() >= DRAW {
                    self.tick(false);
                }
            }
            Event::Written { height, hash, .. } => {
                figures.written.store(*height, Ordering::Relaxed);
                figures.height.store(*height, Ordering::Relaxed);
                if self.at_tip {
                    info!(height, hash = hex(hash), "block");
                }
            }
            Event::Undone { height, hash, .. } => {
                figures.undone.fetch_add(1, Ordering::Relaxed);
                figures
                    .written
                    .store(height.saturating_sub(1), Ordering::Relaxed);
                figures
                    .height
                    .store(height.saturating_sub(1), Ordering::Relaxed);
                info!(height, hash = hex(hash), "block taken off");
            }
        }
    }

    /// Tells how far it is, every few seconds or now.
    fn tick(&mut self, now: bool) {
        let snapshot = self.figures.snapshot();
        self.drawn = Instant::now();
        if let Some(bar) = &self.bar {
            bar.draw(&snapshot);
        }
        if !now && self.last.elapsed() < REPORT {
            return;
        }
        self.last = Instant::now();
        if let Err(e) = snapshot.write(&self.dir) {
            warn!("the status file cannot be written: {e}");
        }
        if self.bar.is_none() && !self.at_tip {
            let (height, target) = (snapshot.height, snapshot.target);
            info!(
                height,
                target,
                mb_s = format!("{:.1}", snapshot.mb_per_second),
                seconds_left = snapshot.seconds_left,
                "catching up"
            );
        }
    }

    fn at_tip(&mut self) {
        if !self.at_tip {
            self.at_tip = true;
            self.bar = None;
            info!(
                height = self.figures.height.load(Ordering::Relaxed),
                "at the source's tip"
            );
        }
    }

    fn end(&mut self) {
        self.bar = None;
        // The process is about to end; what it was doing is no longer so.
        let _ = std::fs::remove_file(crate::status::file(&self.dir));
    }
}
