use std::collections::BTreeSet;

use super::*;
use crate::ingest::source::mongodb::Namespace;

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, Problems> {
    let variables = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
    Config::from_parts(Some("s.toml".into()), text, variables)
}

/// The one problem, as it is printed.
fn problem(text: &str, variables: &[(&str, &str)]) -> String {
    let Problems(problems) = read(text, variables).map(|_| ()).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems[0].to_string()
}

const TOKEN: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const OTHER: &str = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[test]
fn the_default_file_is_the_built_in_default() {
    let mut from_file = Config::from_parts(None, DEFAULT_FILE, []).unwrap();
    let built_in = Config::default();
    // Where a default was written is all that may differ.
    from_file.affinity = built_in.affinity.clone();
    from_file.http.listen.origin = Origin::Absent;
    from_file.quic.listen.origin = Origin::Absent;
    assert_eq!(format!("{from_file:#?}"), format!("{built_in:#?}"));
}

#[test]
fn the_default_file_shows_every_key() {
    // An unknown key makes each section tell its known ones.
    let sections = [
        "node",
        "log",
        "affinity",
        "http",
        "quic",
        "tls",
        "admin",
        "mapping",
        "checkpoint",
        "checkpoint.mongodb",
        "ingest",
        "catch_up",
        "limits",
    ];
    let mut text: String = sections.iter().map(|section| format!("[{section}]\nzzzzzzzzzzzz = 1\n")).collect();
    text += &format!("[[gateways]]\nname = \"g\"\ntoken_sha256 = \"{TOKEN}\"\nzzzzzzzzzzzz = 1\n");
    text += "[[backends]]\nname = \"e\"\nkind = \"embedded\"\nzzzzzzzzzzzz = 1\n";
    let Problems(problems) = read(&text, &[]).unwrap_err();
    assert_eq!(problems.len(), sections.len() + 2, "{problems:#?}");
    let keys: BTreeSet<_> = DEFAULT_FILE
        .lines()
        .filter_map(|line| {
            // A table within a section is a key of it.
            let table = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')?.split_once('.'));
            table.map(|(_, key)| key).or_else(|| Some(line.trim_start_matches(['#', ' ']).split_once(" = ")?.0))
        })
        .collect();
    for problem in problems {
        let (_, allowed) = problem.message.split_once("allowed: ").unwrap();
        for key in allowed.split(", ") {
            assert!(keys.contains(key), "{key} of {} is not in default.toml", problem.key);
        }
    }
}

#[test]
fn the_commented_parts_of_the_default_file_are_valid() {
    let mut text = String::new();
    let mut inside = false;
    for line in DEFAULT_FILE.lines() {
        inside = (inside || line.starts_with("# [[")) && line.starts_with('#');
        let line = if inside { line.trim_start_matches('#').trim_start_matches(' ') } else { line };
        // Comments within the commented parts start with "# # " and keep one #.
        text += if inside && !(line.contains(" = ") || line.starts_with('[')) { "" } else { line };
        text.push('\n');
    }
    let text = text.replace("…64 hexadecimal digits…", TOKEN);
    let config = read(&text, &[]).unwrap();
    assert_eq!((config.gateways.len(), config.backends.len()), (1, 2));
}

#[test]
fn defaults_stand_for_what_is_left_out() {
    let config = read("", &[]).unwrap();
    assert!(config.is_open());
    assert_eq!(config.http.listen.value, "127.0.0.1:8083".parse().unwrap());
    assert_eq!(config.backends.len(), 1);
    assert_eq!(config.backends[0].name, "embedded");
    let BackendKind::Embedded(embedded) = &config.backends[0].kind else { panic!("{:?}", config.backends) };
    assert_eq!(embedded.directory, PathBuf::from("./streamer-data/embedded"));
    assert_eq!(config.advertised_address(2, 7402), "127.0.0.1:7402");
}

#[test]
fn an_outbox_is_bounded_in_bytes_and_changes_and_by_the_log() {
    let limits = |text: &str| read(&format!("[limits]\n{text}"), &[]).unwrap().limits;
    assert_eq!((limits("").outbox_bytes, limits("").outbox_events), (64 << 20, 131_072));
    assert_eq!(limits("outbox_events = 1000").outbox_events, 1_000);
    assert_eq!(limits("log_events = 2000").outbox_events, 1_000, "half of the log");
    let told = problem("[limits]\nlog_events = 2000\noutbox_events = 2001", &[]);
    assert!(
        told.contains("limits.outbox_events = 2001 is more than the log holds; allowed: at most log_events"),
        "{told}"
    );
    let told = problem("[limits]\noutbox_events = 63", &[]);
    assert!(told.contains("limits.outbox_events = 63") && told.contains("64 to"), "{told}");
    assert_eq!(read("[ingest]\npause_max = \"0s\"", &[]).unwrap().ingest.pause_max, Duration::ZERO);
    assert!(problem("[ingest]\npause_max = \"2m\"", &[]).contains("ingest.pause_max"));
}

#[test]
fn the_environment_wins_key_by_key() {
    let text = "[http]\nlisten = \"127.0.0.1:1\"\nmax_body = \"1MiB\"\n[checkpoint]\nevents = 7\n";
    let config = read(
        text,
        &[
            ("STREAMER__HTTP__LISTEN", "127.0.0.1:2"),
            ("STREAMER__CHECKPOINT__EVENTS", "9"),
            ("STREAMER__AFFINITY__SHARDS", "1,1"),
            ("STREAMER__AFFINITY__INGEST", "[0, 1]"),
            ("STREAMER__NODE__DATA_DIR", "007"),
            ("STREAMER__LOG__LEVEL", ""),
            ("UNRELATED", "x"),
        ],
    )
    .unwrap();
    assert_eq!(config.http.listen.value, "127.0.0.1:2".parse().unwrap());
    assert_eq!(config.http.max_body, 1 << 20);
    assert_eq!(config.checkpoint.events, 9);
    assert_eq!(config.affinity.shards.value, Cores::List(vec![1, 1]));
    assert_eq!(config.affinity.ingest.value, Cores::List(vec![0, 1]));
    assert_eq!(config.node.data_dir, PathBuf::from("007"));
}

#[test]
fn lists_of_tables_by_environment() {
    let json = r#"[{"name": "main", "kind": "mongodb", "uri": "mongodb://h/", "namespaces": ["app.orders", "app2"]}]"#;
    let toml = format!("[{{name = \"g1\", token_sha256 = \"{TOKEN}\", tenants = [\"a\", \"b\"]}}]");
    let config = read(
        "",
        &[
            ("STREAMER__BACKENDS__0__URI", "mongodb://other/"),
            ("STREAMER__BACKENDS", json),
            ("STREAMER__GATEWAYS", &toml),
            ("STREAMER__GATEWAYS__0__TENANTS", "[\"c\"]"),
        ],
    )
    .unwrap();
    let BackendKind::Mongodb(mongodb) = &config.backends[0].kind else { panic!() };
    assert_eq!(mongodb.uri, "mongodb://other/");
    assert_eq!(mongodb.namespaces[1], Namespace { database: "app2".into(), collection: None });
    assert!(config.gateways[0].tenants.allow("c") && !config.gateways[0].tenants.allow("a"));
}

#[test]
fn a_time_to_go_on_from_is_a_cluster_time() {
    let text = "[checkpoint]\non_history_lost = \"from_timestamp\"\nhistory_lost_timestamp = \"2026-11-28T10:30:00.5+01:00\"\n\
                [[backends]]\nname = \"a\"\nkind = \"mongodb\"\nuri = \"mongodb://h/\"";
    let config = Config::from_parts(None, text, []).unwrap();
    let seconds = 1_795_858_200;
    assert_eq!(config.checkpoint.on_history_lost, HistoryLost::FromTimestamp { time: seconds << 32 });
}

#[test]
fn problems_name_place_key_value_and_what_is_allowed() {
    for (text, expect) in [
        (
            "\n[checkpoint]\nevry = \"5s\"",
            "s.toml:3: checkpoint.evry is not a key (did you mean \"every\"?); allowed: events, every, \
             history_lost_timestamp, mongodb, on_history_lost, on_missing, oversize, store",
        ),
        (
            "[checkpoint]\nevery = \"5 bananas\"",
            "s.toml:2: checkpoint.every = \"5 bananas\" has the unknown unit \"bananas\"; allowed: a number and a unit of ns, us, ms, \
             s, m, h or d, such as \"50ms\" or \"5s\"",
        ),
        (
            "[checkpoint]\nhistory_lost_timestamp = \"yesterday\"",
            "s.toml:2: checkpoint.history_lost_timestamp = \"yesterday\" is not a time; allowed: such as \"2026-11-28T09:30:00Z\"",
        ),
        (
            "[checkpoint]\nhistory_lost_timestamp = \"2026-11-28T09:30:00Z\"",
            "s.toml:2: checkpoint.history_lost_timestamp has no meaning here; allowed: together with on_history_lost = \"from_timestamp\"",
        ),
        (
            "[checkpoint]\non_history_lost = \"from_timestamp\"",
            "configuration: checkpoint.history_lost_timestamp is needed, since on_history_lost = \"from_timestamp\"; allowed: such as \
             \"2026-11-28T09:30:00Z\"",
        ),
        (
            "[checkpoint]\non_history_lost = \"from_timestamp\"\nhistory_lost_timestamp = \"2026-11-28T09:30:00Z\"",
            "configuration: checkpoint.on_history_lost = \"from_timestamp\" needs a source that finds its place by a time, and the \
             embedded backend \"embedded\" doesn't; allowed with it: \"fail\", \"from_now\"",
        ),
        ("[checkpoint]\nevery = \"9d\"", "s.toml:2: checkpoint.every = \"9d\" is out of range; allowed: 10ms to 1h"),
        (
            "[checkpoint]\nevents = \"x\"",
            "s.toml:2: checkpoint.events = \"x\" is not allowed; allowed: a whole number from 1 to 1000000000",
        ),
        (
            "[node]\nruntime = \"glomio\"",
            "s.toml:2: node.runtime = \"glomio\" is not a choice (did you mean \"glommio\"?); allowed: \"auto\", \"glommio\", \"tokio\"",
        ),
        (
            "[affinity]\nshards = \"5-2\"",
            "s.toml:2: affinity.shards = \"5-2\" has the range \"5-2\", which runs backwards; allowed: \"auto\", \"all\", \"numa:N\" for \
             a NUMA node, or core numbers and ranges such as \"2-5,7\"",
        ),
        ("node = 3", "s.toml:1: node = 3 is not a table"),
        ("[http]\nlisten = 8083", "s.toml:2: http.listen = 8083 is not a text; allowed: a text in quotes"),
        (
            "[[backends]]\nname = \"a\"\nkind = \"mongo\"",
            "s.toml:3: backends[0].kind = \"mongo\" is not a kind of backend; allowed: \"mongodb\", \"embedded\"",
        ),
        (
            "[[backends]]\nname = \"a\"\nkind = \"mongodb\"",
            "s.toml:1: backends[0].uri is missing; allowed: a connection string such as \"mongodb://127.0.0.1:27017/?replicaSet=rs0\"",
        ),
        (
            "[[backends]]\nname = \"a\"\nkind = \"embedded\"\nuri = \"mongodb://h\"",
            "s.toml:1: backends[0].uri is set, but goes with kind = \"mongodb\" only",
        ),
        (
            "[[backends]]\nname = \"a\"\nkind = \"mongodb\"\nuri = \"mongo://u:secret@h\"",
            "s.toml:4: backends[0].uri = \"mongo://***@h\" is not a MongoDB connection string; allowed: mongodb://… or mongodb+srv://…",
        ),
        (
            "[quic]\nadvertise = \"a b\"",
            "s.toml:2: quic.advertise = \"a b\" is neither a host nor host:port; allowed: a host name or an address, with or without a \
             port, such as \"node-1.internal\", \"10.0.0.5:7400\" or \"[2001:db8::5]:7400\"",
        ),
        (
            "[tls]\nkey = \"k.pem\"",
            "s.toml:2: tls.certificate is missing; allowed: certificate and key together, or neither",
        ),
        (
            "[http]\nlisten = \"0.0.0.0:80\"",
            "s.toml:2: http.listen = \"0.0.0.0:80\" would let anyone in, since no Gateways are configured; allowed: a loopback address \
             such as \"127.0.0.1:8083\", or at least one [[gateways]]",
        ),
    ] {
        assert_eq!(problem(text, &[]), expect);
    }
    assert!(problem("[node\n", &[]).starts_with("s.toml:1: is not TOML: "), "{}", problem("[node\n", &[]));
}

#[test]
fn problems_of_the_environment_name_the_variable() {
    assert_eq!(
        problem("", &[("STREAMER__HTTP__LISTN", "x")]),
        "environment variable STREAMER__HTTP__LISTN: http.listn is not a key (did you mean \"listen\"?); allowed: listen, max_body"
    );
    assert_eq!(
        problem("", &[("STREAMER__CHECKPOINT__EVENTS", "many")]),
        "environment variable STREAMER__CHECKPOINT__EVENTS: checkpoint.events = \"many\" is not allowed; allowed: a whole number from 1 \
         to 1000000000"
    );
    assert!(
        problem("", &[("STREAMER__BACKENDS", "[{")]).contains("backends = \"[{\" is neither JSON nor a TOML value")
    );
    assert!(
        problem("", &[("STREAMER__BACKENDS__0__URI", "x")])
            .contains("backends = { 0 = { uri = \"x\" } } is not a list of tables")
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let Problems(problems) =
        read("[node]\na = 1\n[quic]\ngso = \"maybe\"\n[limits]\nttl_default = \"2h\"\n[x]\n", &[]).unwrap_err();
    assert_eq!(problems.len(), 4, "{problems:#?}");
}

#[test]
fn who_may_connect() {
    let gateways = format!("[[gateways]]\nname = \"a\"\ntoken_sha256 = \"{TOKEN}\"\ntenants = [\"t1\"]\n");
    let open =
        "[http]\nlisten = \"0.0.0.0:80\"\n[quic]\nlisten = \"0.0.0.0:7400\"\nadvertise = \"node.internal:9000\"\n";
    let config = read(&format!("{gateways}{open}"), &[]).unwrap();
    assert_eq!(config.advertised_address(3, 7403), "node.internal:9003");
    assert!(!config.is_open());

    let again = format!("{gateways}[[gateways]]\nname = \"a\"\ntoken_sha256 = \"{OTHER}\"\n");
    assert!(problem(&again, &[]).contains("gateways[1].name = \"a\" is taken by gateways[0]"));
    let again = format!("{gateways}[[gateways]]\nname = \"b\"\ntoken_sha256 = \"{TOKEN}\"\n");
    assert!(problem(&again, &[]).contains("gateways[1].token_sha256 is that of gateways[0] too"));
    assert!(
        problem(
            "[[gateways]]\nname = \"a b\"\ntoken_sha256 = \"00\"",
            &[("STREAMER__GATEWAYS__0__TOKEN_SHA256", TOKEN)]
        )
        .contains("1 to 128")
    );
    assert!(problem(&gateways.replace("\"t1\"", ""), &[]).contains("tenants = [] is empty"));
    assert!(problem(&format!("{gateways}[quic]\nlisten = \"[::]:7400\""), &[]).contains("names no address"));
}

#[test]
fn backends_are_told_apart() {
    let two = "[[backends]]\nname = \"a\"\nkind = \"embedded\"\n[[backends]]\nname = \"a\"\nkind = \"mongodb\"\nuri = \"mongodb://h\"\n";
    assert!(problem(two, &[]).contains("backends[1].name = \"a\" is taken by backends[0]"));
    let two = "[[backends]]\nname = \"a\"\nkind = \"embedded\"\ndirectory = \"d\"\n[[backends]]\nname = \"b\"\nkind = \"embedded\"\ndirectory = \"d\"\n";
    assert!(problem(two, &[]).contains("is that of backends[0] too"));
    let out =
        "[[backends]]\nname = \"a\"\nkind = \"mongodb\"\nuri = \"mongodb://h\"\nscope = \"x\"\nnamespaces = [\"y.z\"]";
    assert!(problem(out, &[]).contains("outside the scope \"x\""));
}

#[test]
fn mapping_presets_and_names() {
    let mongodb = "[[backends]]\nname = \"a\"\nkind = \"mongodb\"\nuri = \"mongodb://h\"\n";
    let config = read(&format!("{mongodb}[mapping]\npreset = \"plain\"\ndeletes = \"known\""), &[]).unwrap();
    assert_eq!((config.mapping, config.deletes), (Mapping::Plain, Deletes::Known));
    let config = read(&format!("{mongodb}[mapping]\ntenant = \"org\"\ndata = \"body\""), &[]).unwrap();
    let Mapping::Nested(nested) = config.mapping else { panic!() };
    assert_eq!((nested.tenant, nested.data), (vec!["org".to_owned()], "body".to_owned()));
    assert!(
        problem(&format!("{mongodb}[mapping]\npreset = \"plain\"\ndata = \"x\""), &[]).contains("mapping.data is set")
    );
    assert!(problem("[mapping]\npreset = \"plain\"", &[]).contains("embedded backend that then stands in"));
    assert!(
        problem("[mapping]\ndata = \"a.b\"", &[]).contains("not a field name"),
        "the embedded backend is only half of it"
    );
}

#[test]
fn a_checkpoint_in_mongodb_needs_a_place_and_a_beat() {
    let whole = "[checkpoint]\nstore = \"mongodb\"\nmongodb = { uri = \"mongodb://u:secret@h/\", node = \"n1\" }\n";
    let config = read(whole, &[]).unwrap();
    let CheckpointPlace::Mongodb(place) = &config.checkpoint.place else { panic!("{:?}", config.checkpoint) };
    assert_eq!(place.to_string(), "\"n1\" in streamer.checkpoints at mongodb://***@h/");
    assert!(!format!("{config:?}").contains("secret"));
    // What is there and isn't asked for does no harm.
    let unused = read("[checkpoint.mongodb]\nuri = \"mongodb://h/\"\n", &[]).unwrap();
    assert_eq!(unused.checkpoint.place, CheckpointPlace::File);

    let Problems(problems) = read("[checkpoint]\nstore = \"mongodb\"\n", &[]).unwrap_err();
    let keys: Vec<_> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["checkpoint.mongodb.uri", "checkpoint.mongodb.node"]);
    for (text, key) in [
        (whole.replace("mongodb://u:secret@h/", "http://u:secret@h/"), "checkpoint.mongodb.uri"),
        (whole.replace("n1", "node one"), "checkpoint.mongodb.node"),
        (whole.replace("node =", "database = \"a.b\", node ="), "checkpoint.mongodb.database"),
        (whole.replace("node =", "collection = \"\", node ="), "checkpoint.mongodb.collection"),
        (whole.replace("\nmongodb =", "\nevery = \"31s\"\nmongodb ="), "checkpoint.every"),
        (whole.replace("store = \"mongodb\"", "store = \"etcd\""), "checkpoint.store"),
    ] {
        let problem = problem(&text, &[]);
        assert!(problem.contains(key) && problem.contains("allowed") && !problem.contains("secret"), "{problem}");
    }
}
