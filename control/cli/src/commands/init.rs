//! `weft init`: the node's identity, the network's secret and the configuration, all of them or none.

use std::{
    fs,
    io::{self, IsTerminal as _, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Serialize;
use weft_client::{
    config::{Config, DEFAULT_PORT, MAX_NAME, Params, PeerAddress, default_config},
    secrets::{IdentitySeed, NetworkText, SecretError},
};
use weft_core::identity::{Identity, NetworkSecret};
use zeroize::Zeroizing;

use crate::{
    args::InitArgs,
    context::Context,
    failure::Failure,
    render::{Align, BOLD, Cell, DIM, Table},
};

/// More than any join string with its dashes.
const MAX_JOIN: u64 = 1024;

/// What `weft init --json` prints.
#[derive(Serialize)]
struct Made<'a> {
    name: &'a str,
    node_id: String,
    network_id: String,
    overlay_address: std::net::Ipv6Addr,
    config: &'a Path,
    identity: &'a Path,
    network: &'a Path,
    /// Whether the network is new.
    new_network: bool,
}

pub(super) fn run(context: &mut Context, args: InitArgs) -> Result<(), Failure> {
    let layout = context.layout.clone();
    let files = [layout.config.clone(), layout.identity(), layout.network()];
    refuse_existing(context, &files)?;

    let mut peers = args.peers;
    let joined = match &args.join {
        Some(text) if text == "-" => Some(parse_secret(&read_join(io::stdin())?)?),
        Some(text) => Some(parse_secret(text)?),
        None if !args.new && is_conversation(context) => ask(&mut peers)?,
        None => None,
    };
    let new_network = joined.is_none();
    let secret = match joined {
        Some(secret) => secret,
        None => NetworkSecret::from_bytes(*random()?),
    };
    let seed = random()?;
    let identity = Identity::from_secret(&seed);

    let name = match args.name {
        Some(name) => name,
        None => host_name(),
    };
    let text = default_config(&Params {
        name: name.clone(),
        port: args.port,
        peers: peers.clone(),
        advertise: args.advertise,
        accept: args.accept_all,
        accept_only: args.accept,
        interfaces: args.interfaces,
        tun: !args.no_tun,
        tun_name: args.tun,
        xdp_mode: args.xdp,
    });
    // The same checks as weftd's. The line is of a file that is not there yet, so only the value is told.
    Config::parse(&layout.config, &text).map_err(|error| {
        let value = error
            .value
            .map(|value| format!("`{value}`: "))
            .unwrap_or_default();
        Failure::Usage(format!(
            "{value}{}. {} Nothing was written.",
            error.problem.trim_end_matches('.'),
            error.remedy
        ))
    })?;

    let mut made = Transaction::default();
    made.folder(layout.config.parent(), 0o755)
        .map_err(|failure| hint(context, failure))?;
    made.folder(Some(&layout.state), 0o700)
        .map_err(|failure| hint(context, failure))?;
    made.file(&files[1], |path| {
        secret_written(IdentitySeed(*seed).store(path))
    })
    .map_err(|failure| hint(context, failure))?;
    let Some(network) = NetworkText::new(&secret.to_text()) else {
        return Err(Failure::Failed(
            "the network secret has no text form".into(),
        ));
    };
    made.file(&files[2], |path| secret_written(network.store(path)))?;
    made.file(&files[0], |path| write_config(path, &text))
        .map_err(|failure| hint(context, failure))?;
    made.keep();

    let network_id = secret.network_id();
    let result = Made {
        name: &name,
        node_id: identity.id().to_string(),
        network_id: network_id.to_string(),
        overlay_address: identity.id().overlay_address(&network_id),
        config: &files[0],
        identity: &files[1],
        network: &files[2],
        new_network,
    };
    if context.json {
        return context.document(&result);
    }
    show(context, &result, &secret, args.port, peers.is_empty())
}

fn refuse_existing(context: &Context, files: &[PathBuf]) -> Result<(), Failure> {
    let there: Vec<String> = files
        .iter()
        .filter(|path| path.symlink_metadata().is_ok())
        .map(|path| path.display().to_string())
        .collect();
    if there.is_empty() {
        return Ok(());
    }
    let dir = dir_option(context);
    let next = if there.len() == files.len() {
        format!(
            "This node is set up: start it with `weft{dir} up`. Another node on this host needs a folder of its own: `weft --dir DIR init`."
        )
    } else {
        "An earlier node left them. Move them away if you do not need it any more; its key cannot be made again.".into()
    };
    Err(Failure::Failed(format!(
        "nothing was written, because these exist and are never overwritten: {}.\n{next}",
        there.join(", ")
    )))
}

/// ` --dir DIR` where one was named, for commands that are to be copied.
pub(super) fn dir_option(context: &Context) -> String {
    context
        .dir
        .as_ref()
        .map(|dir| format!(" --dir {}", dir.display()))
        .unwrap_or_default()
}

fn parse_secret(text: &str) -> Result<NetworkSecret, Failure> {
    text.parse().map_err(|error| {
        Failure::Usage(format!("the string to join with is not right: {error}. Copy it whole from `weft invite` on a gateway of the network."))
    })
}

fn read_join(input: impl io::Read) -> Result<Zeroizing<String>, Failure> {
    let mut text = Zeroizing::new(String::new());
    input
        .take(MAX_JOIN)
        .read_to_string(&mut text)
        .map_err(|error| Failure::Failed(format!("standard input cannot be read: {error}")))?;
    Ok(text)
}

/// Whether there is a person to ask.
fn is_conversation(context: &Context) -> bool {
    !context.json && io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks what the arguments left open: the network, and whom to call there.
fn ask(peers: &mut Vec<String>) -> Result<Option<NetworkSecret>, Failure> {
    let secret = loop {
        let answer = question(
            "String of the network to join (from `weft invite` there), or Enter for a new network: ",
        )?;
        if answer.is_empty() {
            return Ok(None);
        }
        match answer.parse::<NetworkSecret>() {
            Ok(secret) => break secret,
            Err(error) => eprintln!("That is not right: {error}."),
        }
    };
    while peers.is_empty() {
        let answer = question(
            "Address of a gateway there to call, or Enter if the others will call this one: ",
        )?;
        if answer.is_empty() {
            break;
        }
        match answer.parse::<PeerAddress>() {
            Ok(_) => peers.push(answer.to_string()),
            Err(error) => eprintln!("That is not right: {error}."),
        }
    }
    Ok(Some(secret))
}

fn question(text: &str) -> Result<Zeroizing<String>, Failure> {
    let failed = |error| Failure::Failed(format!("the terminal cannot be read: {error}"));
    eprint!("{text}");
    io::stderr().flush().map_err(failed)?;
    let mut answer = Zeroizing::new(String::new());
    if io::stdin().read_line(&mut answer).map_err(failed)? == 0 {
        eprintln!();
        return Err(Failure::Failed("no answer: nothing was written".into()));
    }
    Ok(Zeroizing::new(answer.trim().to_owned()))
}

fn random() -> Result<Zeroizing<[u8; 32]>, Failure> {
    let mut bytes = Zeroizing::new([0; 32]);
    SystemRandom::new().fill(&mut bytes[..]).map_err(|_| {
        Failure::Failed(
            "the system gives no random numbers (getrandom failed): no key can be made".into(),
        )
    })?;
    Ok(bytes)
}

/// The host's name as far as it is allowed in a node's name.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let allowed = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    let name: String = name.trim().chars().filter(allowed).take(MAX_NAME).collect();
    if name.is_empty() {
        Params::default().name
    } else {
        name
    }
}

fn secret_written(result: Result<(), SecretError>) -> io::Result<()> {
    result.map_err(|error| match error {
        SecretError::Io { error, .. } => error,
        SecretError::Exists(_) => io::ErrorKind::AlreadyExists.into(),
        other => io::Error::other(other.to_string()),
    })
}

fn write_config(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    if written.is_err() {
        // Half of it would stand in the way of the next attempt.
        _ = fs::remove_file(path);
    }
    written
}

/// What to do where the system said no.
fn hint(context: &Context, failure: Failure) -> Failure {
    match failure {
        Failure::Failed(words) if words.contains("Permission denied") && context.dir.is_none() => {
            Failure::Failed(format!(
                "{words}.\nRun it as root (weftd needs that too), or choose another folder: `weft --dir DIR init`"
            ))
        }
        other => other,
    }
}

/// What was made so far; taken back unless [`Transaction::keep`] is reached.
#[derive(Default)]
struct Transaction {
    files: Vec<PathBuf>,
    folders: Vec<PathBuf>,
}

impl Transaction {
    /// Makes a folder and those above it; the last gets this mode if it was not there.
    fn folder(&mut self, path: Option<&Path>, mode: u32) -> Result<(), Failure> {
        let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else {
            return Ok(());
        };
        let missing: Vec<PathBuf> = path
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
            .map(Path::to_owned)
            .collect();
        for folder in missing.iter().rev() {
            let mode = if folder == path { mode } else { 0o755 };
            match fs::DirBuilder::new().mode(mode).create(folder) {
                Ok(()) => self.folders.push(folder.clone()),
                Err(error) => {
                    return Err(Failure::Failed(format!(
                        "the folder {} cannot be made: {error}",
                        folder.display()
                    )));
                }
            }
        }
        if path.is_dir() {
            Ok(())
        } else {
            Err(Failure::Failed(format!(
                "{} is not a folder",
                path.display()
            )))
        }
    }

    fn file(
        &mut self,
        path: &Path,
        write: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), Failure> {
        write(path).map_err(|error| {
            Failure::Failed(format!("{} cannot be written: {error}", path.display()))
        })?;
        self.files.push(path.to_owned());
        Ok(())
    }

    fn keep(mut self) {
        self.files.clear();
        self.folders.clear();
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        for file in self.files.iter().rev() {
            _ = fs::remove_file(file);
        }
        for folder in self.folders.iter().rev() {
            _ = fs::remove_dir(folder);
        }
    }
}

fn show(
    context: &mut Context,
    made: &Made<'_>,
    secret: &NetworkSecret,
    port: u16,
    no_peers: bool,
) -> Result<(), Failure> {
    let network = if made.new_network {
        "a new network"
    } else {
        "an existing network"
    };
    context.line(&format!("This gateway is set up for {network}."))?;
    context.line("")?;
    let mut facts = Table::bare(&[Align::Left; 2]).indented(2);
    let mut fact = |what: &str, value: String| facts.row([Cell::new(what, DIM), value.into()]);
    fact("name", made.name.to_owned());
    fact("node id", made.node_id.clone());
    fact("address", made.overlay_address.to_string());
    fact("network", made.network_id.clone());
    facts.print(context)?;
    context.line("")?;
    let mut files = Table::bare(&[Align::Left; 2]).indented(2);
    for (path, note) in [
        (
            made.config,
            "the configuration, with every option explained",
        ),
        (made.identity, "this node's key, which nobody else may have"),
        (made.network, "the network's secret"),
    ] {
        files.row([path.display().to_string().into(), Cell::new(note, DIM)]);
    }
    files.print(context)?;

    let dir = dir_option(context);
    let up = context.paint(BOLD, &format!("  weft{dir} up"));
    context.line(&format!("\nStart it:\n{up}"))?;
    if made.new_network {
        let port = if port == DEFAULT_PORT {
            String::new()
        } else {
            format!(":{port}")
        };
        let join = Zeroizing::new(format!(
            "  weft init --join {} --peer ADDRESS-OF-THIS-GATEWAY{port}",
            *secret.to_text()
        ));
        let join = context.paint(BOLD, &join);
        context.line(&format!(
            "\nOn the other gateways (`weft{dir} invite` prints this again):\n{join}"
        ))?;
        context.line(&context.paint(
            DIM,
            "Whoever has that string can join the network: send it over a channel that you trust.",
        ))?;
    } else if no_peers {
        context.line("\nIt calls nobody so far. If no other gateway calls it, name one: `weft peers add ADDRESS` once it is up,")?;
        context.line(&format!(
            "and in `peers` of {} for good.",
            made.config.display()
        ))?;
    }
    Ok(())
}
