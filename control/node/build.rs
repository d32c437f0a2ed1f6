//! Builds the XDP object from `dataplane-ebpf` and leaves its path in `WEFT_XDP_OBJECT`, for `include_bytes!`.
//! The object with the benchmarks' programs likewise.
//!
//! Needs a compiler with a `core` for `bpfel-unknown-none` (Debian's rustc-web, or a rustup nightly with rust-src) and
//! bpf-linker. `cargo xtask setup` installs both; this script only finds them.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";
/// Name of each object, and the variable that names its path to `include_bytes!`.
const OBJECTS: [(&str, &str); 2] = [
    ("weft-xdp", "WEFT_XDP_OBJECT"),
    // For benchmarks and tests; not embedded in weftd.
    ("weft-xdp-bench", "WEFT_XDP_BENCH_OBJECT"),
];

/// A compiler that can build for the target.
enum Toolchain {
    /// Debian's `rustc-web`: a stable compiler that comes with the target's `core`.
    Debian { rustc: PathBuf, cargo: PathBuf },
    /// A rustup nightly, which builds `core` from `rust-src`.
    Nightly { rustup: PathBuf },
}

fn main() {
    if let Err(error) = build() {
        eprintln!("error: the XDP object cannot be built: {error}");
        eprintln!("help: `cargo xtask setup` installs what is missing");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let manifest = PathBuf::from(var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest
        .ancestors()
        .nth(2)
        .ok_or_else(|| {
            format!(
                "{} is not two folders below the workspace",
                manifest.display()
            )
        })?
        .to_owned();
    let source = workspace.join("dataplane-ebpf");
    // Without a line like this any change in the package would run the script.
    println!("cargo:rerun-if-changed=build.rs");
    for path in [
        "src",
        "abi/src",
        "Cargo.toml",
        "Cargo.lock",
        "abi/Cargo.toml",
    ] {
        println!("cargo:rerun-if-changed={}", source.join(path).display());
    }
    println!("cargo:rerun-if-env-changed=WEFT_BPF_LINKER");
    println!("cargo:rerun-if-env-changed=WEFT_BPF_RUSTC");

    let out = PathBuf::from(var("OUT_DIR")?);
    let linker = find_linker(&workspace)?;
    let toolchain = find_toolchain()?;
    let target_dir = out.join("bpf");
    run(&toolchain, &linker, &source, &target_dir)?;

    for (name, variable) in OBJECTS {
        let built = target_dir.join(TARGET).join("release").join(name);
        let object = out.join(name).with_extension("o");
        fs::copy(&built, &object).map_err(|e| format!("{}: {e}", built.display()))?;
        println!("cargo:rustc-env={variable}={}", object.display());
    }
    Ok(())
}

fn var(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("{name} is not set: this script is run by cargo"))
}

fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

fn find_linker(workspace: &Path) -> Result<PathBuf, String> {
    if let Some(named) = env::var_os("WEFT_BPF_LINKER") {
        let path = PathBuf::from(named);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!(
                "WEFT_BPF_LINKER names {}, which is no file: it should be bpf-linker's path",
                path.display()
            ))
        };
    }
    let installed = workspace.join(".weft/tools/bin/bpf-linker");
    if installed.is_file() {
        println!("cargo:rerun-if-changed={}", installed.display());
        return Ok(installed);
    }
    on_path("bpf-linker").ok_or_else(|| {
        "bpf-linker is missing: neither WEFT_BPF_LINKER, nor .weft/tools/bin, nor PATH has it"
            .to_owned()
    })
}

fn find_toolchain() -> Result<Toolchain, String> {
    let mut tried = Vec::new();
    let rustc =
        env::var_os("WEFT_BPF_RUSTC").map_or_else(|| "/usr/bin/rustc".into(), PathBuf::from);
    match target_core(&rustc) {
        Ok(()) => match rustc.with_file_name("cargo") {
            cargo if cargo.is_file() => return Ok(Toolchain::Debian { rustc, cargo }),
            cargo => tried.push(format!(
                "{} is missing (package cargo-web)",
                cargo.display()
            )),
        },
        Err(why) => tried.push(why),
    }
    match on_path("rustup") {
        Some(rustup) => match nightly_source(&rustup) {
            Ok(()) => return Ok(Toolchain::Nightly { rustup }),
            Err(why) => tried.push(why),
        },
        None => tried.push("rustup is not on PATH".to_owned()),
    }
    Err(format!(
        "no compiler for {TARGET}: {}; either install Debian's rustc-web, cargo-web and libstd-rust-web-dev-bpf, or \
         rustup's nightly with the component rust-src",
        tried.join("; ")
    ))
}

/// Whether this compiler has a `core` for the target.
fn target_core(rustc: &Path) -> Result<(), String> {
    let output = Command::new(rustc)
        .args(["--print", "sysroot"])
        .env_remove("RUSTC_WRAPPER")
        .output()
        .map_err(|e| format!("{}: {e}", rustc.display()))?;
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let lib = Path::new(&sysroot)
        .join("lib/rustlib")
        .join(TARGET)
        .join("lib");
    if output.status.success() && lib.is_dir() {
        Ok(())
    } else {
        Err(format!("{} has no core for {TARGET}", rustc.display()))
    }
}

fn nightly_source(rustup: &Path) -> Result<(), String> {
    let output = Command::new(rustup)
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output()
        .map_err(|e| format!("{}: {e}", rustup.display()))?;
    if !output.status.success() {
        return Err("rustup has no toolchain nightly".to_owned());
    }
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if Path::new(&sysroot)
        .join("lib/rustlib/src/rust/library/core")
        .is_dir()
    {
        Ok(())
    } else {
        Err("rustup's nightly has no component rust-src".to_owned())
    }
}

fn run(
    toolchain: &Toolchain,
    linker: &Path,
    source: &Path,
    target_dir: &Path,
) -> Result<(), String> {
    let mut command = match toolchain {
        Toolchain::Debian { rustc, cargo } => {
            let mut command = Command::new(cargo);
            // The target needs unstable features, which this compiler allows when asked so.
            command
                .env("RUSTC", rustc)
                .env("RUSTC_BOOTSTRAP", "1")
                .arg("build");
            command
        }
        Toolchain::Nightly { rustup } => {
            let mut command = Command::new(rustup);
            command.env_remove("RUSTC").args([
                "run",
                "nightly",
                "cargo",
                "build",
                "-Zbuild-std=core",
            ]);
            command
        }
    };
    let flags = [
        "--cfg".to_owned(),
        "bpf_target_arch=\"x86_64\"".to_owned(),
        // The cpu of kernel 5.12 and up: atomic operations that give back the old value.
        "-Ctarget-cpu=v3".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // Packets are read in whole words; the architectures with native XDP allow that at any address.
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
    ];
    command
        .args(["--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .current_dir(source)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    // What cargo set for this build must not leak into that one.
    for name in [
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "RUSTUP_TOOLCHAIN",
        "CARGO",
    ] {
        command.env_remove(name);
    }
    let output = command
        .output()
        .map_err(|e| format!("cargo cannot be started: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "the compiler refused it:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}
