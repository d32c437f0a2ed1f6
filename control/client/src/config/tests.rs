use super::*;

fn refused(text: &str) -> ConfigError {
    Config::parse(Path::new("weft.toml"), text).expect_err("must be refused")
}

#[test]
fn the_default_text_is_accepted_and_says_the_defaults() {
    let params = Params {
        name: "gw-1".into(),
        peers: vec![
            "192.0.2.7".into(),
            "[2001:db8::1]:9000".into(),
            "gw.example.org:7000".into(),
        ],
        advertise: vec!["10.1.0.0/16".into()],
        ..Params::default()
    };
    let full = Config::parse(Path::new("weft.toml"), &default_config(&params)).unwrap();
    let short = Config::parse(
        Path::new("weft.toml"),
        "name = 'gw-1'\npeers = ['192.0.2.7:7117', '[2001:db8::1]:9000', 'gw.example.org:7000']\n[routes]\nadvertise = ['10.1.0.0/16']\n",
    )
    .unwrap();
    assert_eq!(full, short);
    assert_eq!(full.peers[0].to_string(), "192.0.2.7:7117");
    assert_eq!(full.peers[1].to_string(), "[2001:db8::1]:9000");
}

#[test]
fn refusals_name_line_value_and_remedy() {
    let cases = [
        ("name = 'a'\nport = 1\n", 2, "port", "unknown field"),
        ("name = 'a b'\n", 1, "a b", "no node name"),
        (
            "name = 'a'\n[listen]\nport = 70000\n",
            3,
            "70000",
            "out of range",
        ),
        ("name = 'a'\n[listen]\nport = 'x'\n", 3, "x", "invalid type"),
        (
            "name = 'a'\npeers = [\n 'b:1',\n '300.1.1.1:1']\n",
            4,
            "300.1.1.1",
            "no IPv4 address",
        ),
        ("name = 'a'\npeers = ['b:1', 'b:1']\n", 2, "b:1", "twice"),
        (
            "name = 'a'\n[routes]\nadvertise = ['10.1.0.1/16']\n",
            3,
            "10.1.0.1/16",
            "10.1.0.0/16",
        ),
        (
            "name = 'a'\n[timers]\nprobe_busy_ms = 500\nprobe_idle_ms = 100\n",
            4,
            "100",
            "less than probe_busy_ms",
        ),
        ("name = 'a'\n[limits]\nlinks = -1\n", 3, "-1", "negative"),
        (
            "name = 'a'\n[xdp]\nmode = 'turbo'\n",
            3,
            "turbo",
            "unknown variant",
        ),
        (
            "name = 'a'\n[tun]\nname = 'a/b'\n",
            3,
            "a/b",
            "interface name",
        ),
        ("name = 'a'\n[listen\n", 2, "[listen", ""),
    ];
    for (text, line, value, problem) in cases {
        let error = refused(text);
        assert_eq!(error.line, Some(line), "{error}");
        assert!(
            error.value.as_deref().unwrap_or("").contains(value),
            "{error}"
        );
        assert!(error.problem.contains(problem), "{error}");
        assert!(!error.remedy.is_empty());
    }
}

#[test]
fn prefixes_contain_what_they_should() {
    let net: Prefix = "10.1.0.0/16".parse().unwrap();
    assert!(net.contains("10.1.255.255".parse().unwrap()));
    assert!(!net.contains("10.2.0.0".parse().unwrap()));
    assert!(!net.contains("::ffff:10.1.0.0".parse().unwrap()));
    let all: Prefix = "::/0".parse().unwrap();
    assert!(all.contains("fd00::1".parse().unwrap()));
    assert!(all.covers(&"fd00::/8".parse().unwrap()));
    assert!(!"fd00::/8".parse::<Prefix>().unwrap().covers(&all));
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in ".{0,400}") {
        let _ = Config::parse(Path::new("weft.toml"), &text);
    }

    #[test]
    fn no_mutation_of_the_default_text_panics(at in 0usize..3000, byte in 0u8..128, cut in 0usize..40) {
        let mut text = default_config(&Params::default()).into_bytes();
        let at = at % text.len();
        let end = (at + cut).min(text.len());
        text.splice(at..end, [byte]);
        if let Ok(text) = String::from_utf8(text) {
            let _ = Config::parse(Path::new("weft.toml"), &text);
        }
    }

    #[test]
    fn peers_print_as_they_parse(text in "[\\[\\]:a-z0-9.\\-]{0,40}") {
        if let Ok(peer) = text.parse::<PeerAddress>() {
            proptest::prop_assert_eq!(peer.to_string().parse::<PeerAddress>().unwrap(), peer);
        }
    }
}
