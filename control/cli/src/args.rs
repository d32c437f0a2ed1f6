//! What can be asked: the command line, which is also the REPL's language.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use weft_client::config::{DEFAULT_PORT, PeerAddress, Prefix};

const AFTER_HELP: &str = "\
Without a command, weft opens a prompt (or reads commands from standard input, one per line).
A NODE is a name, a node id or a prefix of one, or an overlay address.

Begin:      weft init; weft up; weft invite
Look:       weft status; weft peers; weft nodes; weft ping NODE; weft trace NODE; weft why NODE

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 weftd is not running";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "weft", version, about = "Multi-hop, end-to-end encrypted mesh VPN: look at and steer this node", after_help = AFTER_HELP, disable_help_subcommand = false, max_term_width = 110)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do; a prompt where none is given.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Folder of the node (configuration, state and socket); the system's node where none is given
    #[arg(long, global = true, env = "WEFT_DIR", hide_env_values = true, value_name = "DIR", value_hint = ValueHint::DirPath, overrides_with = "dir")]
    pub dir: Option<PathBuf>,
    /// The daemon's socket, where it is elsewhere
    #[arg(long, global = true, env = "WEFT_SOCKET", hide_env_values = true, value_name = "PATH", value_hint = ValueHint::FilePath, overrides_with = "socket")]
    pub socket: Option<PathBuf>,
    /// Answer in JSON (the API's types; one document, or one line per item of a stream)
    #[arg(long, global = true, overrides_with = "json")]
    pub json: bool,
    /// Colours; auto: on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        global = true,
        value_name = "auto|always|never",
        default_value = "auto",
        hide_possible_values = true,
        hide_default_value = true,
        overrides_with = "color"
    )]
    pub color: ColourChoice,
    /// Seconds to wait for an answer of the daemon
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds, overrides_with = "timeout")]
    pub timeout: f64,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ColourChoice {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Also into pipes.
    Always,
    /// Never.
    Never,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Set this node up: identity, network secret and a commented configuration
    Init(InitArgs),
    /// Start weftd and show what happened
    Up(UpArgs),
    /// Stop weftd and undo what it changed on this host
    Down(DownArgs),
    /// Stop and start weftd while transit traffic flows on
    Restart(UpArgs),
    /// The node at a glance
    Status(StatusArgs),
    /// Neighbours: those configured, added and heard
    Peers(PeersArgs),
    /// Directed links to and from neighbours, with what was measured
    Links,
    /// All nodes of the network
    Nodes,
    /// Label-switched paths that begin, pass or end here
    #[command(visible_alias = "lsps")]
    Lsp,
    /// Destinations and where they lead
    Routes,
    /// End-to-end sessions
    Sessions,
    /// Send echoes through the session to a node
    Ping(PingArgs),
    /// Show the path to a node hop by hop: label, round trip, where it is switched
    Trace(TraceArgs),
    /// Explain the path to a node: what it costs, what was refused and why
    Why(WhyArgs),
    /// Packets and drops by reason
    Counters(CountersArgs),
    /// Print the command with which another gateway joins this network
    Invite,
    /// The network's secret
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Versions of weft and of the running weftd
    Version,
}

/// `weft init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Join an existing network with the string that `weft invite` or `weft secret show` printed there (- reads it
    /// from standard input, where other users of this host do not see it)
    #[arg(long, value_name = "STRING", conflicts_with = "new")]
    pub join: Option<String>,
    /// Make a new network without asking
    #[arg(long)]
    pub new: bool,
    /// A gateway to call: ADDRESS, ADDRESS:PORT, HOST or HOST:PORT; may be given several times
    #[arg(long = "peer", value_name = "ADDR", value_parser = peer)]
    pub peers: Vec<String>,
    /// The node's name, which the others see [default: the host name]
    #[arg(long)]
    pub name: Option<String>,
    /// UDP port to listen on
    #[arg(long, default_value_t = DEFAULT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    /// A prefix behind this node that the others shall reach, like 10.1.0.0/16; may be given several times
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub advertise: Vec<String>,
    /// A prefix of others that becomes a route of this host, like 10.2.0.0/16; may be given several times
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub accept: Vec<String>,
    /// Accept every prefix that a member of the network advertises (but default routes): only where all are trusted
    #[arg(long, conflicts_with = "accept")]
    pub accept_all: bool,
    /// Use only this network interface as underlay; may be given several times [default: all]
    #[arg(long = "interface", value_name = "NAME")]
    pub interfaces: Vec<String>,
    /// Pure transit: no interface and no traffic of its own
    #[arg(long, conflicts_with = "tun")]
    pub no_tun: bool,
    /// Name of the interface into the mesh
    #[arg(long, value_name = "NAME", default_value = "weft0")]
    pub tun: String,
    /// Where transit packets are switched
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = ["auto", "native", "generic", "off"])]
    pub xdp: String,
}

/// `weft up`, `weft restart`
#[derive(Debug, Args)]
pub struct UpArgs {
    /// The weftd program [default: the service where one is installed, else beside this program, else in PATH]
    #[arg(long, env = "WEFT_DAEMON", hide_env_values = true, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    pub daemon: Option<PathBuf>,
    /// Seconds to wait until it answers
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0, value_parser = seconds)]
    pub wait: f64,
}

/// `weft down`
#[derive(Debug, Args)]
pub struct DownArgs {
    /// Leave the kernel's forwarding in place: transit flows on until weftd is back
    #[arg(long)]
    pub keep_transit: bool,
    /// The weftd program, which undoes what a dead weftd left
    #[arg(long, env = "WEFT_DAEMON", hide_env_values = true, value_name = "PATH", value_hint = ValueHint::ExecutablePath)]
    pub daemon: Option<PathBuf>,
}

/// `weft status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// What weftd changed on this host, and how each is undone
    #[arg(long)]
    pub host: bool,
}

/// `weft peers`
#[derive(Debug, Args)]
pub struct PeersArgs {
    /// What to do with them; lists them where nothing is given.
    #[command(subcommand)]
    pub command: Option<PeersCommand>,
}

/// `weft peers …`
#[derive(Debug, Subcommand)]
pub enum PeersCommand {
    /// List them
    List,
    /// Call a neighbour from now on, until weftd stops (weft.toml keeps those for good)
    Add {
        /// ADDRESS, ADDRESS:PORT, HOST or HOST:PORT
        #[arg(value_parser = peer)]
        address: String,
    },
    /// End the links to a neighbour
    Remove {
        /// ADDRESS, ADDRESS:PORT, HOST or HOST:PORT
        #[arg(value_parser = peer)]
        address: String,
    },
}

/// `weft ping`
#[derive(Debug, Args)]
pub struct PingArgs {
    /// Whom
    pub node: String,
    /// Stop after this many [default: until Ctrl-C on a terminal, else 4]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub count: Option<u32>,
    /// Seconds from one echo to the next
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub interval: f64,
    /// Bytes of payload
    #[arg(short = 's', long, value_name = "BYTES", default_value_t = 56)]
    pub size: u16,
    /// Only the statistics
    #[arg(short, long)]
    pub quiet: bool,
}

/// `weft trace`
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Whereto
    pub node: String,
}

/// `weft why`
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// Whereto
    pub node: String,
    /// A node the path must pass; several in this order
    #[arg(long, value_name = "NODE")]
    pub include: Vec<String>,
    /// A node the path must not pass; may be given several times
    #[arg(long, value_name = "NODE")]
    pub avoid: Vec<String>,
    /// Longest sum of one-way delays, milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub max_delay: Option<f64>,
    /// Smallest capacity of every link, megabits per second
    #[arg(long, value_name = "MBPS", value_parser = positive)]
    pub min_bandwidth: Option<f64>,
}

/// `weft counters`
#[derive(Debug, Args)]
pub struct CountersArgs {
    /// Show again every so many seconds, with rates
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = seconds)]
    pub watch: Option<f64>,
    /// Stop watching after this many times
    #[arg(short, long, value_name = "N", requires = "watch", value_parser = clap::value_parser!(u32).range(1..))]
    pub count: Option<u32>,
    /// Also those at zero
    #[arg(short, long)]
    pub all: bool,
}

/// `weft secret …`
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Print the string that admits to the network
    Show,
}

fn peer(text: &str) -> Result<String, String> {
    text.parse::<PeerAddress>().map(|_| text.to_owned())
}

fn prefix(text: &str) -> Result<String, String> {
    text.parse::<Prefix>().map(|_| text.to_owned())
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.001..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("use a number of seconds from 0.001 to 86400".into()),
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("use a number above 0".into()),
    }
}
