//! RocksDB for the index, compiled once per checkout.
//!
//! `librocksdb-sys` compiles RocksDB's 340 files one by one, and most of that time goes into the same headers again and
//! again. Here the very same files, with the same definitions, are compiled in a few large pieces, which takes a
//! fraction of it, into `.weft/tools/rocksdb-<version>-<hash>/librocksdb.a`. `.weft/rocksdb.toml` tells cargo in
//! `indexer/` about it (`indexer/.cargo/config.toml` includes it where it is there), so all profiles and a plain
//! `cargo build` share the library. Without it, `librocksdb-sys` compiles its own as ever.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::packages::{self, Wanted};
use crate::{paths, term};

/// What compiling it and making the bindings takes.
const PACKAGES: &[Wanted] = &[
    Wanted {
        file: "c++",
        package: "g++",
    },
    Wanted {
        file: "ar",
        package: "binutils",
    },
];
/// Pieces it is compiled in. Fewer share more headers, more keep all processors busy to the end.
const PIECES: usize = 12;
/// What a file costs beside its own bytes, in bytes, when pieces of equal work are cut.
const FILE_COST: u64 = 12_000;
/// Made by a script of RocksDB's own build; `librocksdb-sys` brings one.
const GENERATED: &str = "util/build_version.cc";
/// The flags and definitions of the build script of `librocksdb-sys` with the feature `zstd` alone, on Linux.
const FLAGS: &[&str] = &[
    "-O2",
    "-w",
    "-fPIC",
    "-ffunction-sections",
    "-fdata-sections",
    "-std=c++20",
    "-include",
    "cstdint",
    "-DZSTD=1",
    "-DNDEBUG=1",
    "-DHAVE_ALIGNED_NEW",
    "-DHAVE_UINT128_EXTENSION",
    "-DOS_LINUX",
    "-DROCKSDB_PLATFORM_POSIX",
    "-DROCKSDB_LIB_IO_POSIX",
    "-DROCKSDB_SCHED_GETCPU_PRESENT",
    "-DROCKSDB_AUXV_GETAUXVAL_PRESENT",
    "-DROCKSDB_FALLOCATE_PRESENT",
    "-DROCKSDB_RANGESYNC_PRESENT",
];

/// Makes sure that the library and what the bindings need are there; gives the library's folder.
///
/// # Errors
/// Missing packages that cannot be installed, or a build that fails; what would help is said.
pub fn ensure() -> Result<PathBuf> {
    packages::install(PACKAGES)?;
    if !has_libclang() {
        packages::install_packages(&["libclang-dev"])?;
    }
    let versions = Versions::locked()?;
    let name = format!("rocksdb-{}-{}", versions.rocksdb, versions.fingerprint());
    let folder = paths::own_folder().join("tools").join(&name);
    if !folder.join("librocksdb.a").is_file() {
        build(&folder)?;
    }
    tell_cargo(&name)?;
    Ok(folder)
}

/// The file by which cargo learns of the library.
fn cargo_file() -> PathBuf {
    paths::own_folder().join("rocksdb.toml")
}

fn tell_cargo(name: &str) -> Result<()> {
    // Relative to the folder above that of the file.
    let text = format!(
        "# Written by `cargo xtask setup`.\n[env]\nROCKSDB_LIB_DIR = {{ value = \".weft/tools/{name}\", relative = \
         true }}\nROCKSDB_STATIC = \"1\"\n"
    );
    let file = cargo_file();
    if fs::read_to_string(&file).is_ok_and(|t| t == text) {
        return Ok(());
    }
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Whether bindgen will find libclang, in the places where it looks.
fn has_libclang() -> bool {
    let named = std::env::var_os("LIBCLANG_PATH").map(PathBuf::from);
    if named.is_some_and(|p| p.exists()) || term::which("llvm-config").is_some_and(|_| has_header())
    {
        return true;
    }
    library_folders()
        .iter()
        .filter_map(|f| fs::read_dir(f).ok())
        .flat_map(|entries| entries.flatten())
        .any(|f| {
            f.file_name().to_str().is_some_and(|n| {
                n == "libclang.so" || n.starts_with("libclang-") && n.contains(".so")
            })
        })
        && has_header()
}

/// Whether clang's own headers are there, without which libclang cannot read a C header.
fn has_header() -> bool {
    let mut folders = vec![PathBuf::from("/usr/lib/clang")];
    folders.extend(library_folders().iter().map(|f| f.join("clang")));
    folders
        .iter()
        .filter_map(|f| fs::read_dir(f).ok())
        .flat_map(|entries| entries.flatten())
        .any(|f| f.path().join("include/stdarg.h").exists())
}

fn library_folders() -> Vec<PathBuf> {
    let mut folders = ["/usr/lib", "/usr/lib64", "/usr/local/lib"]
        .map(PathBuf::from)
        .to_vec();
    for entry in fs::read_dir("/usr/lib").into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        if name.starts_with("llvm") {
            folders.push(entry.path().join("lib"));
        } else if name.ends_with("-linux-gnu") {
            folders.push(entry.path());
        }
    }
    folders
}

/// The releases that the lock file of `indexer/` names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Versions {
    rocksdb: String,
    zstd: String,
}

impl Versions {
    fn locked() -> Result<Self> {
        #[derive(Deserialize)]
        struct Lock {
            package: Vec<Locked>,
        }
        #[derive(Deserialize)]
        struct Locked {
            name: String,
            version: String,
        }
        let file = paths::indexer().join("Cargo.lock");
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let lock: Lock = toml::from_str(&text).with_context(|| format!("in {}", file.display()))?;
        let of = |name: &str| {
            let found = lock.package.iter().find(|p| p.name == name);
            found
                .map(|p| p.version.clone())
                .with_context(|| format!("{} has no {name}", file.display()))
        };
        Ok(Self {
            rocksdb: of("librocksdb-sys")?,
            zstd: of("zstd-sys")?,
        })
    }

    /// Changes when what would be compiled changes.
    fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for part in FLAGS.iter().chain(processor_flags()).copied().chain([
            self.zstd.as_str(),
            std::env::consts::ARCH,
            std::env::var("CXX").as_deref().unwrap_or("c++"),
        ]) {
            hash.update(part);
            hash.update([0]);
        }
        hash.finalize()[..5]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }
}

/// What the build script adds for the processors that Rust compiles for by default.
fn processor_flags() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["-msse2"],
        _ => &[],
    }
}

impl Versions {
    /// The unpacked sources of both packages, downloaded where they are not there.
    fn sources(&self) -> Result<(PathBuf, PathBuf)> {
        #[derive(Deserialize)]
        struct Metadata {
            packages: Vec<Package>,
        }
        #[derive(Deserialize)]
        struct Package {
            name: String,
            version: String,
            manifest_path: PathBuf,
        }
        let mut command = Command::new(paths::cargo());
        command
            .args(["metadata", "--format-version=1", "--locked"])
            .current_dir(paths::indexer());
        let metadata: Metadata = serde_json::from_str(&term::output_of(&mut command)?)
            .context("in the output of `cargo metadata`")?;
        let of = |name: &str, version: &str| {
            metadata
                .packages
                .iter()
                .find(|p| p.name == name && p.version == version)
                .and_then(|p| p.manifest_path.parent().map(Path::to_owned))
                .with_context(|| format!("`cargo metadata` knows no {name} {version}"))
        };
        Ok((
            of("librocksdb-sys", &self.rocksdb)?,
            of("zstd-sys", &self.zstd)?,
        ))
    }
}

/// How a C++ file is compiled.
struct Compiler {
    program: String,
    arguments: Vec<String>,
}

impl Compiler {
    fn new(rocksdb: &Path, zstd: &Path) -> Self {
        let mut arguments: Vec<String> = FLAGS
            .iter()
            .chain(processor_flags())
            .map(|f| (*f).to_owned())
            .collect();
        for folder in [
            rocksdb.join("rocksdb/include"),
            rocksdb.join("rocksdb"),
            rocksdb.join("rocksdb/third-party/gtest-1.8.1/fused-src"),
            rocksdb.to_owned(),
            zstd.join("zstd/lib"),
        ] {
            arguments.push(format!("-I{}", folder.display()));
        }
        Self {
            program: std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned()),
            arguments,
        }
    }

    fn compile(&self, source: &Path, object: &Path) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg("-c").arg(source);
        term::output_of(command.arg("-o").arg(object)).map(drop)
    }
}

fn build(folder: &Path) -> Result<()> {
    let begun = Instant::now();
    let versions = Versions::locked()?;
    let (rocksdb, zstd) = versions.sources()?;
    let list = rocksdb.join("rocksdb_lib_sources.txt");
    let list =
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let files: Vec<&str> = list
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && *l != GENERATED)
        .collect();
    ensure!(!files.is_empty(), "librocksdb-sys lists no sources");
    term::step(&format!(
        "compiling RocksDB {} for the index (once: {} files in {PIECES} pieces, a few minutes)",
        versions.rocksdb,
        files.len()
    ));
    let scratch = folder.with_extension(format!("building-{}", std::process::id()));
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let made = compile_all(&Compiler::new(&rocksdb, &zstd), &rocksdb, &files, &scratch);
    let archived = made.and_then(|objects| archive(&scratch, &objects));
    if let Err(error) = archived {
        fs::remove_dir_all(&scratch)?;
        return Err(error.context(
            "RocksDB does not compile; it takes a compiler of C++20 (GCC 11, clang 14), which CXX may name",
        ));
    }
    match fs::rename(&scratch, folder) {
        // Somebody else was faster.
        Err(_) if folder.join("librocksdb.a").is_file() => fs::remove_dir_all(&scratch)?,
        renamed => renamed.with_context(|| format!("cannot make {}", folder.display()))?,
    }
    term::good(&format!(
        "RocksDB is compiled ({:.0} s)",
        begun.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// Compiles everything on all processors; gives the objects.
fn compile_all(
    compiler: &Compiler,
    rocksdb: &Path,
    files: &[&str],
    scratch: &Path,
) -> Result<Vec<PathBuf>> {
    let sized: Vec<(&str, u64)> = files
        .iter()
        .map(|f| {
            let path = rocksdb.join("rocksdb").join(f);
            let size = path.metadata().map(|m| m.len());
            size.map(|s| (*f, s + FILE_COST))
                .with_context(|| format!("cannot read {}", path.display()))
        })
        .collect::<Result<_>>()?;
    let mut pieces = pieces(&sized, PIECES);
    pieces.push(Vec::new());
    let (next, objects, failure) = (
        AtomicUsize::new(0),
        Mutex::new(Vec::new()),
        Mutex::new(None),
    );
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = pieces.get(n) else { return };
            let done = if piece.is_empty() {
                let object = scratch.join("version.o");
                compiler
                    .compile(&rocksdb.join("build_version.cc"), &object)
                    .map(|()| vec![object])
            } else {
                compile_piece(compiler, rocksdb, piece, n, scratch)
            };
            match done {
                Ok(made) => lock(&objects).extend(made),
                Err(error) => {
                    next.store(pieces.len(), Ordering::Relaxed);
                    lock(&failure).get_or_insert(error);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(pieces.len()) {
            scope.spawn(work);
        }
    });
    if let Some(error) = lock(&failure).take() {
        return Err(error);
    }
    let mut objects = std::mem::take(&mut *lock(&objects));
    objects.sort();
    Ok(objects)
}

/// One piece as one file; file by file where names clash in that (with another release or compiler).
fn compile_piece(
    compiler: &Compiler,
    rocksdb: &Path,
    files: &[&str],
    number: usize,
    scratch: &Path,
) -> Result<Vec<PathBuf>> {
    let source = scratch.join(format!("piece-{number:02}.cc"));
    let text: String = files
        .iter()
        .map(|f| format!("#include \"{f}\"\n"))
        .collect();
    fs::write(&source, text)?;
    let object = source.with_extension("o");
    let Err(error) = compiler.compile(&source, &object) else {
        return Ok(vec![object]);
    };
    let said = format!("{error:#}");
    let first = said.lines().find(|l| l.contains("error")).unwrap_or(&said);
    term::warn(&format!(
        "a piece of RocksDB does not compile as one, so its files are compiled one by one: {first}"
    ));
    files
        .iter()
        .enumerate()
        .map(|(i, file)| {
            let object = scratch.join(format!("piece-{number:02}-{i:03}.o"));
            compiler.compile(&rocksdb.join("rocksdb").join(file), &object)?;
            Ok(object)
        })
        .collect()
}

/// Cuts the list into `count` runs of about equal weight, in order: files of one folder have the most in common.
fn pieces<'a>(files: &[(&'a str, u64)], count: usize) -> Vec<Vec<&'a str>> {
    let total: u64 = files.iter().map(|(_, w)| w).sum();
    let share = total / count.max(1) as u64 + 1;
    let mut out: Vec<Vec<&str>> = vec![Vec::new(); count];
    let mut before = 0;
    for (file, weight) in files {
        let place = usize::try_from(before / share).unwrap_or(0);
        out[place.min(count - 1)].push(file);
        before += weight;
    }
    out.retain(|p| !p.is_empty());
    out
}

fn archive(scratch: &Path, objects: &[PathBuf]) -> Result<()> {
    let mut command = Command::new("ar");
    command
        .arg("crs")
        .arg(scratch.join("librocksdb.a"))
        .args(objects);
    term::output_of(&mut command)?;
    for entry in fs::read_dir(scratch)?.flatten() {
        let keep = entry.file_name() == "librocksdb.a";
        if !keep {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_order_and_lose_nothing() {
        let names: Vec<String> = (0..100).map(|i| format!("f{i:02}")).collect();
        let files: Vec<(&str, u64)> = names
            .iter()
            .enumerate()
            .map(|(i, n)| (n.as_str(), 10 + i as u64 % 7 * 100))
            .collect();
        let cut = pieces(&files, 8);
        assert_eq!(cut.len(), 8);
        let back: Vec<&str> = cut.concat();
        assert_eq!(back, names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(pieces(&files[..3], 8).concat().len(), 3);
    }

    #[test]
    fn the_lock_file_names_what_is_compiled() {
        let versions = Versions::locked().unwrap();
        assert!(versions.rocksdb.contains('.') && versions.zstd.contains('.'));
        let other = Versions {
            zstd: "0".to_owned(),
            ..versions.clone()
        };
        assert_ne!(versions.fingerprint(), other.fingerprint());
    }
}
