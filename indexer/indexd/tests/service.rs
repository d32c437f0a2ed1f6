//! The program on Bitcoin's first blocks, verb by verb, and on files that are damaged.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;

use common::{Bench, Grower, data};
use serde_json::Value;

#[test]
fn every_verb_on_mainnet_blocks() {
    let (Some(folder), Some(core)) = (
        data("every_verb_on_mainnet_blocks", "core-mainnet-4312"),
        data("every_verb_on_mainnet_blocks", "core-mainnet-4312"),
    ) else {
        return;
    };
    let bench = Bench::new("bitcoin", "batch_blocks = 1000");
    for name in ["blk00000.dat", "xor.dat"] {
        fs::copy(folder.join(name), bench.blocks("bitcoin").join(name)).unwrap();
    }
    let check = bench.run(&["check"]);
    assert!(
        check.contains("4312") && check.contains("will be made"),
        "{check}"
    );
    assert!(bench.fail(&["status"]).contains("database"));
    bench.run(&["run", "--once"]);

    let info: Value =
        serde_json::from_slice(&fs::read(core.join("gettxoutsetinfo.json")).unwrap()).unwrap();
    let want = &info["muhash_by_height"].as_array().unwrap().last().unwrap();
    let status = bench.json(&["status"]);
    assert_eq!(status["tip"]["height"], 4312);
    assert_eq!(status["tip"]["muhash"], want["muhash"]);
    assert_eq!(status["tip"]["totals"]["coins"], want["txouts"]);
    assert!(
        bench
            .run(&["verify", "--offline"])
            .contains(want["muhash"].as_str().unwrap())
    );

    // The first payment between people: block 170.
    let tx = "f4184fc596403b9d638783cf57adfe4c75c605f6356fbc91338530e9831e9e16";
    assert_eq!(bench.json(&["query", "tx", tx])["height"], 170);
    let coin = bench.json(&["query", "coin", &format!("{tx}:0")]);
    assert_eq!(
        (&coin["value"], &coin["height"]),
        (&Value::from(1_000_000_000), &Value::from(170))
    );
    assert_eq!(
        bench.json(&["query", "coin", &format!("{tx}:1")]),
        Value::Null,
        "spent in block 181"
    );
    // P2PK of block 9's coinbase, spent in block 170.
    let hal = weft_chain::script_hash(&[&[65][..], &pk(SATOSHI), &[0xac]].concat());
    let name = weft_chain::hash::hex(&hal);
    let history = bench.json(&["query", "history", &name]);
    let heights: Vec<_> = history
        .as_array()
        .unwrap()
        .iter()
        .map(|h| h["height"].as_u64().unwrap())
        .collect();
    assert_eq!(heights, [9, 170, 181, 182, 183, 248]);
    let unspents = bench.json(&["query", "unspents", &name]);
    let balance = bench.json(&["query", "balance", &name]);
    assert_eq!(balance["coins"], unspents.as_array().unwrap().len());
    assert_eq!(
        bench.json(&["query", "block", "170"])["hash"],
        bench.json(&[
            "query",
            "block",
            bench.json(&["query", "block", "170"])["hash"]
                .as_str()
                .unwrap()
        ])["hash"]
    );

    let dump = bench.path("coins.dat");
    bench.run(&["export", dump.to_str().unwrap()]);
    assert!(fs::read(&dump).unwrap() == fs::read(core.join("utxo-4312.dumptxoutset")).unwrap());
    assert!(
        bench
            .fail(&["export", dump.to_str().unwrap()])
            .contains("exists")
    );
    bench.run(&["compact"]);
    bench.run(&["verify", "--offline"]);
    bench.run(&["run", "--once"]);
}

const SATOSHI: &str = "0411db93e1dcdb8a016b49840f8c53bc1eb68a382e97b1482ecad7b148a6909a5cb2e0eaddfb84ccf9744464f82e160bfa9b8b64f9d4c03f999b8643f656b412a3";

fn pk(hex: &str) -> Vec<u8> {
    (0..65)
        .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

#[test]
fn init_writes_a_file_that_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fresh.toml");
    let init = |network: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_weft-indexd"));
        let output = command
            .arg("--config")
            .arg(&path)
            .args(["init", "--network", network])
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (done, said) = init("nocoin");
    assert!(!done && said.contains("nocoin") && !path.exists(), "{said}");
    let (done, said) = init("litecoin");
    assert!(done, "{said}");
    assert_eq!(
        weft_indexd::config::Config::load(&path).unwrap().network,
        "litecoin"
    );
    let (done, said) = init("litecoin");
    assert!(!done && said.contains("never overwritten"), "{said}");
}

#[test]
fn a_block_that_is_still_being_written() {
    let bench = Bench::new("bitcoin-regtest", "");
    let mut grower = Grower::new(&bench.blocks("bitcoin-regtest"), 1);
    let blocks = grower.grow(0, 50);
    grower.append(&blocks);
    let file = bench.blocks("bitcoin-regtest").join("blk00000.dat");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 40]).unwrap();
    bench.run(&["run", "--once"]);
    assert_eq!(bench.json(&["status"])["tip"]["height"], 49);
    fs::write(&file, &whole).unwrap();
    bench.run(&["run", "--once"]);
    assert_eq!(bench.json(&["status"])["tip"]["height"], 50);
    bench.run(&["verify", "--offline"]);
    // The node lost its tail: the index stays where it can.
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    bench.output(&["run", "--once"]);
    bench.run(&["verify", "--offline"]);
}

#[test]
fn a_damaged_file_is_named_and_nothing_else_changes() {
    let bench = Bench::new("bitcoin-regtest", "batch_blocks = 100");
    let mut grower = Grower::new(&bench.blocks("bitcoin-regtest"), 2);
    let blocks = grower.grow(0, 400);
    grower.append(&blocks);
    bench.run(&["run", "--once"]);
    bench.run(&["compact"]);
    let files: Vec<_> = fs::read_dir(bench.path("weft-index/db"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    let tables: Vec<_> = files
        .iter()
        .filter(|p| p.extension().is_some_and(|e| e == "sst"))
        .collect();
    assert!(tables.len() >= 6);
    let mut named = 0;
    for table in &tables {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(table)
            .unwrap();
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 40).unwrap();
        file.write_all_at(&bytes.map(|b| !b), 40).unwrap();
        let verify = bench.output(&["verify", "--offline"]);
        let said = String::from_utf8_lossy(&verify.stderr).to_lowercase();
        if !verify.status.success() {
            assert!(said.contains("corrupt"), "{said}");
            named += 1;
        }
        file.write_all_at(&bytes, 40).unwrap();
        bench.run(&["verify", "--offline"]);
    }
    // Verifying reads coins, coins by script, ids, headers and the meta rows.
    assert!(named >= 4, "{named} damaged files were noticed");
    bench.run(&["run", "--once"]);
}

#[test]
fn a_full_disk_is_named_and_the_index_goes_on_later() {
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED a_full_disk_is_named_and_the_index_goes_on_later: mounting takes root");
        return;
    }
    let bench = Bench::new("bitcoin-regtest", "batch_blocks = 150");
    let mut grower = Grower::new(&bench.blocks("bitcoin-regtest"), 3);
    let blocks = grower.grow(0, 1500);
    grower.append(&blocks);
    let dir = bench.path("weft-index");
    fs::create_dir_all(&dir).unwrap();
    // In a mount namespace of its own, which ends with the shell and takes the disk with it.
    let script = format!(
        "set -u; mount -t tmpfs -o size=400k none {dir} || exit 77; {run} run --once; echo first=$?; \
         mount -o remount,size=64m {dir}; {run} verify --offline && echo intact; {run} run --once; echo second=$?; \
         {run} verify --offline; echo verified=$?; {run} status",
        dir = dir.display(),
        run = format_args!(
            "{} --config {}",
            env!("CARGO_BIN_EXE_weft-indexd"),
            bench.path("weft-indexd.toml").display()
        ),
    );
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output()
        .unwrap();
    if output.status.code() == Some(77)
        || String::from_utf8_lossy(&output.stderr).contains("unshare failed")
    {
        println!("SKIPPED a_full_disk_is_named_and_the_index_goes_on_later: no mounts here");
        return;
    }
    let (said, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(said.contains("first=1"), "{said}{errors}");
    assert!(
        errors.contains("disk full") || errors.contains("No space left"),
        "{errors}"
    );
    assert!(
        said.contains("second=0") && said.contains("verified=0"),
        "{said}{errors}"
    );
    assert!(said.contains("\"height\": 1500"), "{said}");
}

/// The same chain from plain files as an early node wrote them.
#[test]
fn plain_block_files_give_the_same() {
    let test = "plain_block_files_give_the_same";
    let (Some(folder), Some(core)) = (
        data(test, "bitcoin-mainnet-0-4312"),
        data(test, "core-mainnet-4312"),
    ) else {
        return;
    };
    let bench = Bench::new("bitcoin", "");
    fs::copy(
        folder.join("blk00000.dat"),
        bench.blocks("bitcoin").join("blk00000.dat"),
    )
    .unwrap();
    bench.run(&["run", "--once"]);
    let info: Value =
        serde_json::from_slice(&fs::read(core.join("gettxoutsetinfo.json")).unwrap()).unwrap();
    let heights = info["muhash_by_height"].as_array().unwrap();
    for want in heights {
        let height = want["height"].to_string();
        let block = bench.json(&["query", "block", &height]);
        assert_eq!(block["muhash"], want["muhash"], "height {height}");
    }
    let dump = bench.path("coins.dat");
    bench.run(&["export", dump.to_str().unwrap()]);
    assert!(fs::read(&dump).unwrap() == fs::read(core.join("utxo-4312.dumptxoutset")).unwrap());
}
