//! `weft-index-bench`: measures the coin index on a generated chain shaped like Bitcoin's.
//!
//! `weft-index-bench run --json FILE` generates the chain once (at least 2 GB), then measures in one
//! run: catching up in a process of its own, with and without the commitment; size before and
//! after compaction; reopening; queries; and the time from a block in the node's file to the
//! index's event. Figures per core divide by processor time, which a busy machine does not stretch
//! as much as the clock.

mod electrum;
mod generate;
mod measure;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "weft-index-bench",
    version,
    about = "Measures the coin index on a generated chain"
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the chain, unless it is there.
    Generate(Place),
    /// Make the chain and measure everything.
    Run {
        #[command(flatten)]
        place: Place,
        /// Write the figures here as well.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Part of `run`: catch up and print what it took.
    #[command(hide = true)]
    CatchUp {
        /// A node's data directory.
        chain: PathBuf,
        /// Folder of the database.
        database: PathBuf,
        /// Without the commitment.
        #[arg(long)]
        bare: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Place {
    /// Folder for chain and databases.
    #[arg(long, default_value = "target/index-bench")]
    dir: PathBuf,
    /// Bytes of blocks.
    #[arg(long, default_value_t = 2_000_000_000)]
    bytes: u64,
    /// Seed of the chain.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Place {
    fn generate(&self) -> Result<generate::Description> {
        let mut told = 0;
        generate::generate(&self.dir.join("chain"), self.bytes, self.seed, |made| {
            if made - told >= 200_000_000 {
                told = made;
                eprintln!(
                    "generated {} of {} MB",
                    made / 1_000_000,
                    self.bytes / 1_000_000
                );
            }
        })
    }
}

fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::Generate(place) => {
            println!("{}", serde_json::to_string_pretty(&place.generate()?)?);
            Ok(())
        }
        Verb::Run { place, json } => {
            let description = place.generate()?;
            let figures = measure::everything(&place.dir, &description)?;
            let text = serde_json::to_string_pretty(&figures)?;
            println!("{text}");
            if let Some(path) = json {
                std::fs::write(path, text)?;
            }
            Ok(())
        }
        Verb::CatchUp {
            chain,
            database,
            bare,
        } => measure::catch_up_and_tell(&chain, &database, bare),
    }
}
