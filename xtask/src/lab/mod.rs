//! Labs: networks of real nodes on one machine, from a [`Topology`].
//!
//! Each node has a network namespace and runs the real `weftd` with a folder of its own; each link is a veth pair, or
//! two with a [`wire::Wire`] between. Everything a lab makes is recorded before it is made ([`registry`]) and removed
//! when the lab is dropped, when the process gets SIGINT, SIGTERM or SIGHUP, or, after a crash, by the next lab.
//!
//! ```no_run
//! use xtask::lab::{Lab, topology::Topology};
//!
//! let topology = Topology::parse("[nodes.a]\n[nodes.b]\n[[link]]\nbetween = [\"a\", \"b\"]\n", "t.toml", "pair")?;
//! let lab = Lab::start(&topology)?;
//! lab.wait_reachable("a", "b")?;
//! println!("{}", lab.node("a").api()?.status()?.overlay_address);
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use weft_client::config::DEFAULT_PORT;

pub mod capture;
pub mod netns;
pub mod node;
pub mod registry;
mod signals;
pub mod topology;
pub mod traffic;
pub mod verb;
pub mod wire;

use netns::Netns;
use node::{End, Node};
use registry::{Entry, NodeRecord, Record};
use topology::{Family, LinkSpec, Shape, Topology};
use wire::Wire;

use crate::{paths::Programs, term};

/// How long nodes may take until they know a path to each other.
pub const CONVERGENCE_LIMIT: Duration = Duration::from_secs(30);

/// A running lab; removed when dropped, unless [`Lab::keep`] was called.
#[derive(Debug)]
pub struct Lab {
    entry: Option<Entry>,
    record: Record,
    nodes: BTreeMap<String, Node>,
    links: Vec<Link>,
}

/// A link of a lab.
#[derive(Debug)]
pub struct Link {
    spec: LinkSpec,
    wire: Option<Mutex<Wire>>,
}

impl Link {
    /// As in the topology.
    #[must_use]
    pub fn spec(&self) -> &LinkSpec {
        &self.spec
    }

    /// The wire in between.
    ///
    /// # Errors
    /// When the link was made without one.
    pub fn wire(&self) -> Result<MutexGuard<'_, Wire>> {
        let [a, b] = &self.spec.between;
        let wire = self
            .wire
            .as_ref()
            .with_context(|| format!("the link {a} - {b} has no wire: give it `tap = true`"))?;
        Ok(wire.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Lab {
    /// Builds the network and starts every daemon, and waits until all answer.
    ///
    /// # Errors
    /// When programs or privileges are missing, or a daemon does not come up; everything made is removed again.
    pub fn start(topology: &Topology) -> Result<Self> {
        let lab = Self::build(topology, &Programs::find()?)?;
        lab.start_all()?;
        Ok(lab)
    }

    /// Builds the network and writes the nodes' configurations, and starts nothing.
    ///
    /// # Errors
    /// As [`Lab::start`].
    pub fn build(topology: &Topology, programs: &Programs) -> Result<Self> {
        signals::install()?;
        let (entry, mut record) = Entry::create(&topology.name)?;
        let plan = Plan::new(topology, &record.id);
        record.nodes = topology
            .nodes
            .iter()
            .map(|(name, spec)| NodeRecord {
                name: name.clone(),
                namespace: plan.node_namespace(name),
                dir: entry.folder().join(name),
                daemon: spec.daemon,
            })
            .collect();
        record.namespaces = record.nodes.iter().map(|n| n.namespace.clone()).collect();
        record
            .namespaces
            .extend(plan.wires.iter().flatten().cloned());
        entry.write(&record)?;
        signals::add(&record, entry.folder());

        let mut lab = Self {
            entry: Some(entry),
            record,
            nodes: BTreeMap::new(),
            links: Vec::new(),
        };
        lab.make_nodes(topology, &plan, programs)?;
        lab.make_links(topology, &plan)?;
        lab.configure(topology)?;
        lab.record_pins()?;
        Ok(lab)
    }

    /// Starts all daemons that the topology wants and waits until they answer.
    ///
    /// # Errors
    /// The first that does not come up, with the end of its log.
    pub fn start_all(&self) -> Result<()> {
        for node in self.daemons() {
            node.spawn()?;
        }
        self.daemons().try_for_each(Node::wait_ready)
    }

    /// The lab's id, which is in all names it made.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// A node.
    ///
    /// # Panics
    /// When the topology has none of this name.
    #[must_use]
    #[track_caller]
    pub fn node(&self, name: &str) -> &Node {
        match self.nodes.get(name) {
            Some(node) => node,
            None => panic!("the topology has no node {name:?}"),
        }
    }

    /// All nodes by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The nodes that run `weftd`.
    pub fn daemons(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|n| n.spec.daemon)
    }

    /// The links in the topology's order.
    #[must_use]
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The place of the first link between two nodes, in either order.
    ///
    /// # Panics
    /// When the topology has none.
    #[must_use]
    #[track_caller]
    pub fn link_between(&self, a: &str, b: &str) -> usize {
        let wanted = |l: &Link| l.spec.between == [a, b] || l.spec.between == [b, a];
        match self.links.iter().position(wanted) {
            Some(place) => place,
            None => panic!("the topology has no link between {a} and {b}"),
        }
    }

    /// Brings a link's interfaces up or takes them down: both ends lose or gain their carrier.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn set_link(&self, a: &str, b: &str, up: bool) -> Result<()> {
        let link = self.link_between(a, b);
        for name in &self.links[link].spec.between {
            let node = self.node(name);
            if let Some(end) = node.ends.iter().find(|e| e.link == link) {
                node.set_interface(&end.interface, up)?;
            }
        }
        Ok(())
    }

    /// Changes what happens to frames from `from` to `to`; the link must have a wire.
    ///
    /// # Errors
    /// Without a wire, or what `nft` and `tc` say.
    pub fn shape(&self, from: &str, to: &str, shape: Shape) -> Result<()> {
        let link = &self.links[self.link_between(from, to)];
        let direction = usize::from(link.spec.between[0] != from);
        link.wire()?.shape(direction, shape)
    }

    /// Moves a node's end of the link to `peer` to another underlay address in the same network, the old one gone.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn change_address(&self, node: &str, peer: &str) -> Result<IpAddr> {
        let node = self.node(node);
        let end = node.end_to(peer);
        let (new, bits) = match end.address {
            IpAddr::V4(a) => (IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() + 100)), 24),
            IpAddr::V6(a) => (IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() + 100)), 64),
        };
        let nodad = if new.is_ipv6() { " nodad" } else { "" };
        node.namespace.ip(&format!(
            "addr del {old}/{bits} dev {dev}\naddr add {new}/{bits} dev {dev}{nodad}\n",
            old = end.address,
            dev = end.interface,
        ))?;
        Ok(new)
    }

    /// Waits until `from`'s daemon knows a path to `to`.
    ///
    /// # Errors
    /// When it does not in [`CONVERGENCE_LIMIT`].
    pub fn wait_reachable(&self, from: &str, to: &str) -> Result<()> {
        let what = format!("node {from} to know a path to {to}");
        wait_for(&what, CONVERGENCE_LIMIT, || {
            let nodes = self.node(from).api()?.nodes()?;
            Ok(nodes
                .iter()
                .any(|n| n.name == to && n.reachable)
                .then_some(()))
        })
        .with_context(|| format!("its log ends:\n{}", self.node(from).log_end(20)))
    }

    /// Waits until every daemon knows a path to every other.
    ///
    /// # Errors
    /// When one does not in [`CONVERGENCE_LIMIT`].
    pub fn wait_converged(&self) -> Result<()> {
        let names = self.daemons().map(|n| n.name.clone()).collect::<Vec<_>>();
        for (from, to) in names
            .iter()
            .flat_map(|a| names.iter().map(move |b| (a, b)))
            .filter(|(a, b)| a != b)
        {
            self.wait_reachable(from, to)?;
        }
        Ok(())
    }

    /// Mounts an empty memory filesystem of this size over a folder of the lab; goes with the lab.
    ///
    /// # Errors
    /// When the folder is not the lab's, or the kernel refuses.
    pub fn mount_small(&self, folder: &Path, bytes: usize) -> Result<()> {
        ensure!(
            folder.starts_with(self.folder()?),
            "{} is not in the lab's folder",
            folder.display()
        );
        let target = CString::new(folder.as_os_str().as_encoded_bytes())?;
        let options = CString::new(format!("size={bytes},mode=0700"))?;
        let (kind, data) = (c"tmpfs".as_ptr(), options.as_ptr().cast());
        // SAFETY: all pointers are C strings that live through the call.
        let mounted = unsafe { libc::mount(kind, target.as_ptr(), kind, 0, data) };
        ensure!(
            mounted == 0,
            "cannot mount on {}: {}",
            folder.display(),
            std::io::Error::last_os_error()
        );
        Ok(())
    }

    /// Leaves everything running after this process ends, until `cargo xtask lab down`.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn keep(mut self) -> Result<()> {
        if let Some(entry) = self.entry.take() {
            self.record.keep = true;
            entry.write(&self.record)?;
            signals::forget(&self.record.id);
        }
        Ok(())
    }

    fn folder(&self) -> Result<&Path> {
        Ok(self.entry.as_ref().context("the lab was removed")?.folder())
    }

    fn make_nodes(&mut self, topology: &Topology, plan: &Plan, programs: &Programs) -> Result<()> {
        for (name, spec) in &topology.nodes {
            let namespace = Netns::add(&plan.node_namespace(name))?;
            prepare_namespace(&namespace)?;
            for prefix in &spec.advertise {
                let nodad = if prefix.contains(':') { " nodad" } else { "" };
                namespace.ip(&format!(
                    "addr add {} dev lo{nodad}\n",
                    first_address(prefix)?
                ))?;
            }
            let dir = self.folder()?.join(name);
            fs::create_dir(&dir)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
            let node = Node {
                name: name.clone(),
                spec: spec.clone(),
                namespace,
                dir,
                ends: plan.ends(topology, name),
                programs: programs.clone(),
                id: String::new(),
                child: Mutex::new(None),
            };
            self.nodes.insert(name.clone(), node);
        }
        Ok(())
    }

    fn make_links(&mut self, topology: &Topology, plan: &Plan) -> Result<()> {
        for (number, spec) in topology.links.iter().enumerate() {
            let ends = [0, 1].map(|side| {
                let node = &self.nodes[&spec.between[side]];
                let end = node.ends.iter().filter(|e| e.link == number).nth(0);
                (node, end)
            });
            let [(a, Some(a_end)), (b, Some(b_end))] = ends else {
                bail!("link {number} has no ends")
            };
            let [a_mac, b_mac] = [0, 1].map(|side| mac(number, side));
            let (a_if, b_if) = (&a_end.interface, &b_end.interface);
            let (a_ns, b_ns) = (a.namespace.name(), b.namespace.name());
            let wire = match &plan.wires[number] {
                None => {
                    netns::batch(
                        std::process::Command::new("ip").args(["-batch", "-"]),
                        &format!(
                            "link add name {a_if} address {a_mac} netns {a_ns} type veth peer name {b_if} address {b_mac} netns {b_ns}\n"
                        ),
                    )?;
                    None
                }
                Some(name) => {
                    let namespace = Netns::add(name)?;
                    let [first, second] = wire::ENDS;
                    netns::batch(
                        std::process::Command::new("ip").args(["-batch", "-"]),
                        &format!(
                            "link add name {a_if} address {a_mac} netns {a_ns} type veth peer name {first} netns {name}\n\
                             link add name {b_if} address {b_mac} netns {b_ns} type veth peer name {second} netns {name}\n"
                        ),
                    )?;
                    Some(Mutex::new(Wire::new(
                        namespace,
                        spec.mtu,
                        [spec.there, spec.back],
                    )?))
                }
            };
            let bits = if spec.family == Family::V4 {
                "24"
            } else {
                "64 nodad"
            };
            for (node, end, other, other_mac) in
                [(a, a_end, b_end, &b_mac), (b, b_end, a_end, &a_mac)]
            {
                let dev = &end.interface;
                let mut lines = format!(
                    "link set {dev} mtu {} up\naddr add {}/{bits} dev {dev}\n",
                    spec.mtu, end.address
                );
                if spec.there.cut || spec.back.cut {
                    // Address resolution cannot work in one direction only.
                    lines += &format!(
                        "neigh replace {} lladdr {other_mac} dev {dev} nud permanent\n",
                        other.address
                    );
                }
                node.namespace.ip(&lines)?;
                node.namespace.run(|| netns::gro(dev, true))??;
            }
            self.links.push(Link {
                spec: spec.clone(),
                wire,
            });
        }
        Ok(())
    }

    /// Lets `weft init` write identity, network secret and configuration of each node, as a person would.
    fn configure(&mut self, topology: &Topology) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Made {
            node_id: String,
        }
        let mut ids = Vec::new();
        let mut secrets = BTreeMap::<&str, String>::new();
        for node in self.daemons() {
            let mut command = node.weft(&["init", "--json", "--name", &node.name]);
            for end in &node.ends {
                let link = &topology.links[end.link];
                let side = usize::from(link.between[0] != node.name);
                if link.dial[side] {
                    let other = self
                        .node(&end.peer)
                        .ends
                        .iter()
                        .find(|e| e.link == end.link);
                    let address = other.context("a link without its other end")?.address;
                    command
                        .arg("--peer")
                        .arg(std::net::SocketAddr::new(address, DEFAULT_PORT).to_string());
                }
            }
            if !node.spec.tun {
                command.arg("--no-tun");
            }
            for prefix in &node.spec.advertise {
                command.args(["--advertise", prefix]);
            }
            for other in self.daemons().filter(|other| other.name != node.name) {
                for prefix in &other.spec.advertise {
                    command.args(["--accept", prefix]);
                }
            }
            let network = node.spec.network.as_str();
            match secrets.get(network) {
                None => command.arg("--new"),
                Some(text) => command.args(["--join", text]),
            };
            let made =
                term::output_of(&mut command).with_context(|| format!("node {}", node.name))?;
            let made: Made =
                serde_json::from_str(&made).context("`weft init --json` wrote no node id")?;
            ids.push((node.name.clone(), made.node_id));
            if !secrets.contains_key(network) {
                let text = fs::read_to_string(node.layout().network())
                    .context("`weft init` left no network secret")?;
                secrets.insert(network, text.trim().to_owned());
            }
            overlay_config(&node.layout().config, &node.spec.config)?;
        }
        for (name, id) in ids {
            if let Some(node) = self.nodes.get_mut(&name) {
                node.id = id;
            }
        }
        Ok(())
    }

    /// Has a file removed with the lab that a process of it is going to make elsewhere; to be called before it does.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn remove_with_it(&mut self, file: PathBuf) -> Result<()> {
        self.record.files.push(file);
        self.write_record()
    }

    fn record_pins(&mut self) -> Result<()> {
        self.record.pins = self.nodes.values().flat_map(Node::pins).collect();
        self.write_record()
    }

    fn write_record(&self) -> Result<()> {
        let entry = self.entry.as_ref().context("the lab was removed")?;
        signals::forget(&self.record.id);
        signals::add(&self.record, entry.folder());
        entry.write(&self.record)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(entry) = self.entry.take() else {
            return;
        };
        if std::thread::panicking() {
            for node in self.daemons() {
                eprintln!("--- log of node {} ends:\n{}", node.name, node.log_end(25));
            }
        }
        for node in self.nodes.values() {
            if node.pid().is_some() {
                // It may have ended by itself; then there is nothing to kill.
                let _ = node.kill9();
            }
        }
        self.nodes.clear();
        self.links.clear();
        registry::demolish(&self.record, entry.folder());
        signals::forget(&self.record.id);
    }
}

/// Names and addresses, all known before anything is made.
struct Plan {
    id: String,
    wires: Vec<Option<String>>,
}

impl Plan {
    fn new(topology: &Topology, id: &str) -> Self {
        let wire = |(n, l): (usize, &LinkSpec)| l.has_wire().then(|| format!("weft-{id}-wire{n}"));
        Self {
            id: id.to_owned(),
            wires: topology.links.iter().enumerate().map(wire).collect(),
        }
    }

    fn node_namespace(&self, node: &str) -> String {
        format!("weft-{}-{node}", self.id)
    }

    fn ends(&self, topology: &Topology, node: &str) -> Vec<End> {
        let mut ends = Vec::<End>::new();
        for (number, link) in topology.links.iter().enumerate() {
            for side in 0..2 {
                if link.between[side] != node {
                    continue;
                }
                let peer = link.between[1 - side].clone();
                // 15 bytes are an interface name's limit.
                let mut interface = format!("to-{}", peer.chars().take(12).collect::<String>());
                if ends.iter().any(|e| e.interface == interface) {
                    interface = format!("to-{}.{number}", peer.chars().take(8).collect::<String>());
                }
                ends.push(End {
                    link: number,
                    peer,
                    interface,
                    address: address(number, side, link.family),
                });
            }
        }
        ends
    }
}

/// Out of the benchmarking (RFC 2544) and documentation (RFC 3849) ranges; link `n` has a network of its own.
fn address(link: usize, side: usize, family: Family) -> IpAddr {
    let (link, host) = (link as u32, side as u32 + 1);
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + (link << 8) + host)),
        Family::V6 => {
            let network = 0x2001_0db8_u128 << 96;
            IpAddr::V6(Ipv6Addr::from_bits(
                network + (u128::from(link + 1) << 64) + u128::from(host),
            ))
        }
    }
}

fn mac(link: usize, side: usize) -> String {
    format!(
        "02:57:00:{:02x}:{:02x}:{:02x}",
        link >> 8 & 0xff,
        link & 0xff,
        side + 1
    )
}

/// `10.7.0.1/24` out of `10.7.0.0/24`.
fn first_address(prefix: &str) -> Result<String> {
    let (network, bits) = prefix
        .split_once('/')
        .context("a prefix without a length")?;
    let first = match network.parse()? {
        IpAddr::V4(a) if bits != "32" => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() | 1)),
        IpAddr::V6(a) if bits != "128" => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() | 1)),
        host => host,
    };
    Ok(format!("{first}/{bits}"))
}

fn prepare_namespace(namespace: &Netns) -> Result<()> {
    for (name, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        // An interface that is taken down and up again keeps its addresses, as with IPv4.
        ("ipv6/conf/all/keep_addr_on_down", "1"),
        ("ipv6/conf/default/keep_addr_on_down", "1"),
    ] {
        namespace.sysctl(name, value)?;
    }
    namespace.ip("link set lo up\n")
}

/// Lays a table over a configuration file, key by key.
fn overlay_config(path: &Path, over: &toml::Table) -> Result<()> {
    if over.is_empty() {
        return Ok(());
    }
    let mut table: toml::Table = fs::read_to_string(path)?
        .parse()
        .context("`weft init` wrote no TOML")?;
    merge(&mut table, over);
    fs::write(path, toml::to_string_pretty(&table)?)?;
    Ok(())
}

fn merge(into: &mut toml::Table, from: &toml::Table) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(value)) => merge(below, value),
            _ => drop(into.insert(key.clone(), value.clone())),
        }
    }
}

/// Asks again and again until there is an answer; never longer than `limit`.
///
/// # Errors
/// The question's own error at once; after `limit`, that `what` did not happen.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("waited {:.1} s in vain for {what}", limit.as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_has_a_network_of_its_own() {
        assert_eq!(address(0, 0, Family::V4).to_string(), "198.18.0.1");
        assert_eq!(address(255, 1, Family::V4).to_string(), "198.18.255.2");
        assert_eq!(address(0, 1, Family::V6).to_string(), "2001:db8:0:1::2");
        assert_eq!(first_address("10.7.0.0/24").unwrap(), "10.7.0.1/24");
        assert_eq!(first_address("10.7.0.9/32").unwrap(), "10.7.0.9/32");
    }

    #[test]
    fn parallel_links_have_different_interfaces() {
        let text = "[nodes.a]\n[nodes.a-long-name-for-a-node]\n[[link]]\nbetween = [\"a\", \"a-long-name-for-a-node\"]\n\
                    [[link]]\nbetween = [\"a-long-name-for-a-node\", \"a\"]\n";
        let topology = Topology::parse(text, "t", "t").unwrap();
        let ends = Plan::new(&topology, "0000").ends(&topology, "a");
        assert_eq!(ends.len(), 2);
        assert_ne!(ends[0].interface, ends[1].interface);
        assert!(ends.iter().all(|e| e.interface.len() <= 15));
    }

    #[test]
    fn configuration_is_laid_over_key_by_key() {
        let mut below: toml::Table = "a = 1\n[t]\nx = 1\ny = 2\n".parse().unwrap();
        merge(&mut below, &"b = 2\n[t]\ny = 3\n".parse().unwrap());
        assert_eq!(below, "a = 1\nb = 2\n[t]\nx = 1\ny = 3\n".parse().unwrap());
    }

    #[test]
    fn waiting_ends() {
        let mut asked = 0;
        let answer = wait_for("a third question", Duration::from_secs(5), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(answer.unwrap(), 3);
        let vain = wait_for::<()>("nothing", Duration::from_millis(30), || Ok(None)).unwrap_err();
        assert!(vain.to_string().contains("nothing"));
    }
}
