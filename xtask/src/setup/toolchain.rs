//! The eBPF toolchain: a compiler that has (or can build) `core` for `bpfel-unknown-none`, and bpf-linker with the LLVM
//! of that compiler.
//!
//! Two kinds of compiler do. Debian's `rustc-web` with `libstd-rust-web-dev-bpf` has a prebuilt `core`; rustup's
//! nightly with `rust-src` builds it. The first is taken where it is there. bpf-linker is taken from
//! `WEFT_BPF_LINKER`, then from `.weft/tools/bin`, then from `PATH`; where none of them works it is built into
//! `.weft/tools`. `control/node/build.rs` looks in the same places, so a plain `cargo build` works after setup.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, bail, ensure};

use super::packages;
use crate::{paths, term};

/// The release of bpf-linker that setup builds.
pub const LINKER_VERSION: &str = "0.13.0";
/// The oldest that is taken when it is there.
const OLDEST_LINKER: [u32; 3] = [0, 10, 3];
const TARGET: &str = "bpfel-unknown-none";

/// What builds the eBPF object.
#[derive(Clone, Debug)]
pub struct Ebpf {
    /// The compiler.
    pub compiler: Compiler,
    /// bpf-linker.
    pub linker: PathBuf,
}

/// A compiler that can make eBPF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// It has a prebuilt `core` for the target (Debian's `rustc-web`).
    Prebuilt {
        /// The compiler.
        rustc: PathBuf,
        /// Its release, e.g. `1.96.0`.
        release: String,
        /// The LLVM in it.
        llvm: u32,
    },
    /// rustup's nightly with `rust-src`: `core` is built along.
    Nightly {
        /// Its release.
        release: String,
        /// The LLVM in it.
        llvm: u32,
        /// Its folder.
        sysroot: PathBuf,
    },
}

impl Compiler {
    fn llvm(&self) -> u32 {
        match self {
            Self::Prebuilt { llvm, .. } | Self::Nightly { llvm, .. } => *llvm,
        }
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prebuilt {
                rustc,
                release,
                llvm,
            } => {
                write!(
                    f,
                    "{} {release} (LLVM {llvm}) with a prebuilt core for {TARGET}",
                    rustc.display()
                )
            }
            Self::Nightly { release, llvm, .. } => {
                write!(
                    f,
                    "rustup's nightly {release} (LLVM {llvm}) with rust-src, core built from source"
                )
            }
        }
    }
}

/// Finds the toolchain and installs what is missing of it.
///
/// # Errors
/// What is missing and cannot be installed, with the commands that would help.
pub fn ensure(talk: bool) -> Result<Ebpf> {
    let compiler = match find_compiler() {
        Some(compiler) => compiler,
        None => {
            install_compiler()?;
            find_compiler().context(
                "the eBPF compiler was installed and still is not found: `/usr/bin/rustc --print sysroot` should hold \
                 lib/rustlib/bpfel-unknown-none",
            )?
        }
    };
    let linker = match find_linker(&compiler, talk)? {
        Some(linker) => linker,
        None => build_linker(&compiler)?,
    };
    Ok(Ebpf { compiler, linker })
}

fn find_compiler() -> Option<Compiler> {
    prebuilt(Path::new("/usr/bin/rustc")).or_else(nightly)
}

fn prebuilt(rustc: &Path) -> Option<Compiler> {
    if !rustc.exists() {
        return None;
    }
    let sysroot = PathBuf::from(
        term::output_of(Command::new(rustc).args(["--print", "sysroot"]))
            .ok()?
            .trim(),
    );
    let library = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    let has_core = fs::read_dir(library).ok()?.flatten().any(|f| {
        f.file_name()
            .to_str()
            .is_some_and(|n| n.starts_with("libcore-") && n.ends_with(".rlib"))
    });
    if !has_core || !Path::new("/usr/bin/cargo").exists() {
        return None;
    }
    let (release, llvm) = versions(Command::new(rustc))?;
    Some(Compiler::Prebuilt {
        rustc: rustc.to_owned(),
        release,
        llvm,
    })
}

fn nightly() -> Option<Compiler> {
    term::which("rustup")?;
    let rustc = || {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "rustc"]);
        command
    };
    let sysroot = PathBuf::from(
        term::output_of(rustc().args(["--print", "sysroot"]))
            .ok()?
            .trim(),
    );
    if !sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
    {
        return None;
    }
    let (release, llvm) = versions(rustc())?;
    Some(Compiler::Nightly {
        release,
        llvm,
        sysroot,
    })
}

/// Release and LLVM's major version out of `rustc -vV`.
fn versions(mut rustc: Command) -> Option<(String, u32)> {
    let text = term::output_of(rustc.arg("-vV")).ok()?;
    let field = |name: &str| {
        text.lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned))
    };
    Some((
        field("release")?,
        field("LLVM version")?.split('.').next()?.parse().ok()?,
    ))
}

fn install_compiler() -> Result<()> {
    let debian = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
    if packages::has_apt() && (packages::is_root() || term::which("rustup").is_none()) {
        if !packages::has_candidate(debian[2]) && packages::is_root() {
            term::step("refreshing the package lists");
            term::run(Command::new("apt-get").args(["update", "-qq"]))?;
        }
        if packages::has_candidate(debian[2]) {
            term::step("no eBPF compiler yet: taking Debian's, which has core for the target");
            return packages::install_packages(&debian);
        }
    }
    if term::which("rustup").is_some() {
        term::step("no eBPF compiler yet: adding rustup's nightly with rust-src");
        return term::run(Command::new("rustup").args([
            "toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src",
        ]))
        .context("run `rustup toolchain install nightly --component rust-src`, then `cargo xtask setup` again");
    }
    bail!(
        "no compiler for eBPF. On Debian: `sudo apt-get install {}`; elsewhere, with rustup: `rustup toolchain install \
         nightly --component rust-src`; then `cargo xtask setup` again",
        debian.join(" ")
    )
}

/// The folder of bpf-linker as built by us.
fn own_tools() -> PathBuf {
    paths::own_folder().join("tools")
}

/// A linker that is there and works with the compiler.
fn find_linker(compiler: &Compiler, talk: bool) -> Result<Option<PathBuf>> {
    if let Some(named) = std::env::var_os("WEFT_BPF_LINKER") {
        let named = PathBuf::from(named);
        check_linker(&named, compiler).with_context(|| {
            format!(
                "WEFT_BPF_LINKER={}: unset it, or name one that works",
                named.display()
            )
        })?;
        return Ok(Some(named));
    }
    let own = own_tools().join("bin/bpf-linker");
    for candidate in [own.is_file().then_some(own), term::which("bpf-linker")]
        .into_iter()
        .flatten()
    {
        match check_linker(&candidate, compiler) {
            Ok(()) => return Ok(Some(candidate)),
            Err(why) if talk => {
                term::warn(&format!("{} is not taken: {why:#}", candidate.display()))
            }
            Err(_) => {}
        }
    }
    Ok(None)
}

/// Whether this linker turns the compiler's output into an object. The trial is remembered by the files' dates.
fn check_linker(linker: &Path, compiler: &Compiler) -> Result<()> {
    let changed = |file: &Path| {
        let date = file
            .metadata()
            .and_then(|m| m.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH);
        date.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos()
    };
    let stamp_file = own_tools().join("linker-checked");
    let stamp = format!("{} {} {compiler}\n", linker.display(), changed(linker));
    if fs::read_to_string(&stamp_file).is_ok_and(|s| s == stamp) && linker.is_file() {
        return Ok(());
    }
    let text = term::output_of(Command::new(linker).arg("--version"))?;
    let version = text.split_whitespace().last().and_then(parse_version);
    ensure!(
        version.is_some_and(|v| v >= OLDEST_LINKER),
        "`{} --version` says {:?}; at least {OLDEST_LINKER:?} is needed",
        linker.display(),
        text.trim()
    );
    if let Compiler::Prebuilt { rustc, .. } = compiler {
        trial(linker, rustc)?;
    }
    fs::create_dir_all(own_tools())?;
    fs::write(&stamp_file, stamp).with_context(|| format!("cannot write {}", stamp_file.display()))
}

/// Compiles and links a program that does nothing.
fn trial(linker: &Path, rustc: &Path) -> Result<()> {
    const SOURCE: &str = "#![no_std]\n#![no_main]\n#[unsafe(no_mangle)]\n#[unsafe(link_section = \"xdp\")]\n\
        pub extern \"C\" fn trial() -> u32 { 2 }\n\
        #[panic_handler]\nfn panic(_: &core::panic::PanicInfo<'_>) -> ! { loop {} }\n";
    let folder = own_tools().join(format!("trial-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let (source, object) = (folder.join("trial.rs"), folder.join("trial.o"));
    fs::write(&source, SOURCE)?;
    let mut command = Command::new(rustc);
    command.args([
        "--edition=2024",
        "--target",
        TARGET,
        "--crate-type=bin",
        "-O",
        "-Cpanic=abort",
    ]);
    command
        .arg(format!("-Clinker={}", linker.display()))
        .arg("-o")
        .args([&object, &source]);
    command.env_remove("RUSTC_WRAPPER").env_remove("RUSTFLAGS");
    let tried = term::output_of(&mut command).map(|_| object.is_file());
    fs::remove_dir_all(&folder)?;
    ensure!(
        tried.context("it does not link what the compiler makes")?,
        "it makes no object"
    );
    Ok(())
}

fn parse_version(text: &str) -> Option<[u32; 3]> {
    let mut numbers = text.split('.').map(|n| n.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

fn build_linker(compiler: &Compiler) -> Result<PathBuf> {
    let tools = own_tools();
    let llvm = compiler.llvm();
    ensure!(
        (21..=23).contains(&llvm),
        "bpf-linker {LINKER_VERSION} knows LLVM 21 to 23, the compiler has LLVM {llvm}: put a bpf-linker that matches \
         it on PATH, or name it in WEFT_BPF_LINKER"
    );
    let prefix = llvm_prefix(compiler, &tools)?;
    term::step(&format!(
        "building bpf-linker {LINKER_VERSION} for LLVM {llvm} (once, about a minute)"
    ));
    let mut command = Command::new(paths::cargo());
    command
        .args([
            "install",
            "bpf-linker",
            "--quiet",
            "--locked",
            "--version",
            LINKER_VERSION,
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{llvm}"), "--force", "--root"])
        .arg(&tools)
        .env("LLVM_PREFIX", &prefix)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .current_dir(&tools);
    term::run(&mut command).context("bpf-linker did not build")?;
    let linker = tools.join("bin/bpf-linker");
    check_linker(&linker, compiler).context("the bpf-linker that was just built does not work")?;
    Ok(linker)
}

/// A folder whose `lib` has the compiler's LLVM under the name linkers look for.
fn llvm_prefix(compiler: &Compiler, tools: &Path) -> Result<PathBuf> {
    let llvm = compiler.llvm();
    let wanted = format!("libLLVM.so.{llvm}");
    let folders = match compiler {
        Compiler::Nightly { sysroot, .. } => vec![sysroot.join("lib")],
        Compiler::Prebuilt { .. } => {
            let multiarch = fs::read_dir("/usr/lib")
                .into_iter()
                .flatten()
                .flatten()
                .map(|f| f.path());
            multiarch
                .filter(|f| f.to_str().is_some_and(|n| n.ends_with("-linux-gnu")))
                .collect()
        }
    };
    let library = folders
        .iter()
        .filter_map(|f| fs::read_dir(f).ok())
        .flat_map(|entries| entries.flatten())
        .find(|f| {
            f.file_name()
                .to_str()
                .is_some_and(|n| n.starts_with(&wanted))
        })
        .with_context(|| {
            format!(
                "{wanted}* is in none of {folders:?}; on Debian: `apt-get install libllvm{llvm}`"
            )
        })?;
    let prefix = tools.join("llvm");
    let lib = prefix.join("lib");
    if lib.exists() {
        fs::remove_dir_all(&lib)?;
    }
    fs::create_dir_all(&lib)?;
    // bpf-linker gets this folder as its run path, so the library must be there under its own name too.
    for name in ["libLLVM.so".into(), library.file_name()] {
        std::os::unix::fs::symlink(library.path(), lib.join(name))?;
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parse_version("0.13.0") > Some(OLDEST_LINKER));
        assert!(parse_version("0.9.15") < Some(OLDEST_LINKER));
        assert_eq!(parse_version("main"), None);
    }

    #[test]
    fn a_program_that_is_no_linker_is_refused() {
        let compiler = Compiler::Nightly {
            release: "x".into(),
            llvm: 22,
            sysroot: "/nonexistent".into(),
        };
        let error = format!(
            "{:#}",
            check_linker(Path::new("/bin/true"), &compiler).unwrap_err()
        );
        assert!(error.contains("--version"), "{error}");
        assert!(check_linker(Path::new("/nonexistent/bpf-linker"), &compiler).is_err());
    }
}
