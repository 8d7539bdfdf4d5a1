//! What the sources make of each other, and what is refused.

use super::{check::URL_EXPECTED, *};
use std::{ffi::OsString, fs};

struct Given {
    folder: tempfile::TempDir,
    sources: Sources,
}

/// A working folder with this `backjob.toml`, these variables and flags.
fn given(toml: &str, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Given {
    let folder = tempfile::tempdir().expect("a folder");
    if !toml.is_empty() {
        fs::write(folder.path().join("backjob.toml"), toml).expect("written");
    }
    let sources = Sources {
        folder: folder.path().to_owned(),
        file: None,
        environment: variables.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        flags: flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    Given { folder, sources }
}

fn load(toml: &str, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, String> {
    Config::load(given(toml, variables, flags).sources).map_err(|faults| faults.to_string())
}

fn refused(toml: &str, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Vec<String> {
    let faults = load(toml, variables, flags).expect_err("refused");
    faults.lines().map(str::to_owned).collect()
}

#[test]
fn nothing_given_is_the_default() {
    let config = load("", &[("PATH", "/bin"), ("BACKJOBS", "x")], &[]).expect("loads");
    assert_eq!(config, Config::default());
    assert!(config.validate().is_empty());
    assert_eq!(config.targets["default"].url, "http://127.0.0.1:8080");
    assert!(config.trigger.user_agent.starts_with("backjob/") && !config.node.name.is_empty());
}

#[test]
fn the_documented_file_gives_exactly_the_defaults() {
    assert_eq!(load(Config::documented(), &[], &[]), Ok(Config::default()));
}

#[test]
fn every_setting_is_documented() {
    let table: toml::Table = Config::documented().parse().expect("TOML");
    let keys = |section: &toml::Value| -> Vec<String> {
        let mut keys: Vec<_> = section.as_table().expect("a section").keys().cloned().collect();
        keys.sort();
        keys
    };
    let sorted = |keys: &[&str]| {
        let mut keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
        keys.sort();
        keys
    };
    for (section, known) in [
        ("server", Server::KEYS),
        ("tls", Tls::KEYS),
        ("worker", Worker::KEYS),
        ("http", Http::KEYS),
        ("retention", Retention::KEYS),
        ("node", Node::KEYS),
        ("database", Database::KEYS),
        ("trigger", Trigger::KEYS),
        ("jobs", Jobs::KEYS),
        ("log", Log::KEYS),
    ] {
        assert_eq!(keys(&table[section]), sorted(known), "{section}");
    }
    assert_eq!(keys(&table["targets"]["default"]), sorted(Target::KEYS));
    assert!(table.contains_key("key_file"));
}

#[test]
fn a_later_source_beats_an_earlier_one() {
    let toml = "[jobs]\nerror_timeout = 1\ncancel_grace = 1\nmax_pending = 1\n";
    let variables = [("BACKJOB_JOBS_CANCEL_GRACE", "2s"), ("BACKJOB_JOBS_MAX_PENDING", "2")];
    let config =
        load(toml, &variables, &[("jobs.max_pending", "0"), ("jobs.max_pending", "3")]).expect("loads");
    let second = Duration::from_secs(1);
    assert_eq!((config.jobs.error_timeout, config.jobs.cancel_grace), (second, 2 * second));
    assert_eq!(config.jobs.max_pending, 3);
    assert_eq!(config.jobs.flush_interval, Duration::from_millis(200));
}

#[test]
fn targets_come_from_every_source() {
    let toml = "[targets.my-shop]\nurl = \"http://127.0.0.1:1\"\nallow_headers = [\"X-Real-IP\"]\n";
    let variables = [
        ("BACKJOB_TARGETS_MY_SHOP_MAX_IN_FLIGHT", "3"),
        ("BACKJOB_TARGETS_BLOG_URL", "https://blog.test"),
        ("BACKJOB_TARGETS_BLOG_CA_FILE", "ca.pem"),
        ("BACKJOB_TARGETS_BLOG_ALLOW", "10.0.0.0/8, 192.168.0.1"),
    ];
    let config = load(toml, &variables, &[("targets.chat.url", "unix:/run/chat.sock")]).expect("loads");
    let names: Vec<&str> = config.targets.keys().map(String::as_str).collect();
    assert_eq!(names, ["blog", "chat", "my-shop"]);
    assert_eq!(config.targets["my-shop"].max_in_flight, 3);
    assert_eq!(config.targets["my-shop"].allow_headers, ["x-real-ip"]);
    assert_eq!(config.targets["blog"].ca_file, Some("ca.pem".into()));
    assert_eq!(config.targets["blog"].allow.len(), 2);
}

#[test]
fn the_default_target_has_a_url_and_no_other_has() {
    let config = load("[targets.default]\n", &[], &[]).expect("loads");
    assert_eq!(config, Config::default());
    let config = load("", &[("BACKJOB_TARGETS_DEFAULT_MAX_IN_FLIGHT", "2")], &[]).expect("loads");
    assert_eq!(config.targets["default"].url, DEFAULT_TARGET_URL);
    let faults = refused("[targets.shop]\n", &[], &[]);
    assert_eq!(faults, [format!("targets.shop.url {URL_EXPECTED}")]);
}

#[test]
fn every_fault_of_every_source_is_named_at_once() {
    let toml = "errorTimeout = 60\nuseCache = true\nserver = 1\n[retained]\nall = 1\n[jobs]\nerror_timeout = \"x\"\n\
                max_pending = 0\nflush = 1\n[targets.default]\nurl = \"ftp://host\"\n[targets.\"A b\"]\nurl = \"http://h\"\n";
    let variables = [("BACKJOB_SERVER_LISTNE", "x"), ("BACKJOB_X", "1"), ("BACKJOB_TARGETS_SHOP", "x")];
    let faults = refused(toml, &variables, &[("trigger.linger", "2h"), ("nothing", "1"), ("jobs", "1")]);
    let starts = [
        "BACKJOB_TARGETS_SHOP: is the variable of no setting",
        "BACKJOB_X: is the variable of no setting",
        "backjob.toml: errorTimeout is now jobs.error_timeout",
        "backjob.toml: jobs.error_timeout must be a span like",
        "backjob.toml: jobs.flush is no setting; there are error_timeout, response_timeout,",
        "backjob.toml: retained is no setting",
        "backjob.toml: server is a section: [server]",
        "backjob.toml: useCache is no longer needed",
        "BACKJOB_SERVER_LISTNE: server.listne is no setting; there are listen,",
        "--set: nothing is no setting",
        "--set: jobs is a section: [jobs]",
        "targets.A b has a bad name",
        "backjob.toml: targets.default.url must be a URL",
        "--set: trigger.linger must be 0 s to 1 h",
        "backjob.toml: jobs.max_pending must be at least 1",
    ];
    for start in starts {
        let found = faults.iter().filter(|fault| fault.starts_with(start)).count();
        assert_eq!(found, 1, "{start}\n{faults:#?}");
    }
    assert_eq!(faults.len(), starts.len(), "{faults:#?}");
}

#[test]
fn names_of_backjob_are_told_where_they_went() {
    for name in ["useCache", "ch", "cachePrefix", "checkAndCreateTable", "key", "useDb", "db", "tableName"] {
        let faults = refused(&format!("{name} = 1\n"), &[], &[]);
        assert!(!faults[0].ends_with("is no setting"), "{faults:?}");
    }
    for name in ["errorTimeout", "userAgent", "backlogDays", "allBacklogDays"] {
        let faults = refused(&format!("[jobs]\n{name} = 1\n"), &[], &[]);
        assert!(!faults[0].contains("there are"), "{faults:?}");
    }
}

#[test]
fn variables_that_are_no_settings_are_left_alone() {
    let names = [
        "ADDR",
        "TOKEN",
        "CONFIG",
        "LOG",
        "PORT",
        "PORT_50051_TCP",
        "SERVICE_HOST",
        "SERVICE_PORT_GRPC",
        "TEST_DB",
    ];
    for name in names {
        let value = if name == "CONFIG" { "" } else { "x" };
        assert_eq!(load("", &[(&format!("BACKJOB_{name}"), value)], &[]), Ok(Config::default()), "{name}");
    }
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let mut given = given("[jobs]\nmax_pending = 7\n", &[], &[]);
    let mut asked = given.sources.clone();
    asked.file = Some("other.toml".into());
    let faults = Config::load(asked).expect_err("refused").to_string();
    assert!(faults.starts_with("other.toml: cannot be read"), "{faults}");

    fs::rename(given.folder.path().join("backjob.toml"), given.folder.path().join("mine.toml"))
        .expect("moved");
    assert_eq!(Config::load(given.sources.clone()), Ok(Config::default()));
    given.sources.environment.push(("BACKJOB_CONFIG".into(), "mine.toml".into()));
    assert_eq!(Config::load(given.sources).expect("loads").jobs.max_pending, 7);
}

#[test]
fn broken_toml_is_named_by_its_line_and_hides_nothing_else() {
    let faults = refused("[jobs]\n\nmax_pending = = 1\n", &[("BACKJOB_JOBS_X", "1")], &[]);
    assert!(faults[0].starts_with("backjob.toml: line 3: "), "{faults:?}");
    assert!(faults[1].starts_with("BACKJOB_JOBS_X: "), "{faults:?}");
    assert_eq!(faults.len(), 2);
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_no_text_is_a_fault() {
    use std::os::unix::ffi::OsStringExt as _;
    let mut given = given("", &[], &[]);
    given.sources.environment.push(("BACKJOB_NODE_NAME".into(), OsString::from_vec(vec![0xff])));
    given.sources.environment.push((OsString::from_vec(vec![0xff]), "x".into()));
    let faults = Config::load(given.sources).expect_err("refused").to_string();
    assert_eq!(faults, "BACKJOB_NODE_NAME: is not UTF-8");
}

#[test]
fn a_public_address_needs_a_word() {
    let faults = refused("", &[("BACKJOB_SERVER_LISTEN", "0.0.0.0:50051")], &[]);
    assert!(
        faults[0].starts_with("BACKJOB_SERVER_LISTEN: server.listen is not a loopback address"),
        "{faults:?}"
    );
    for listen in ["127.8.8.8:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
        assert!(load("", &[], &[("server.listen", listen)]).is_ok(), "{listen}");
    }
    let public = ("server.listen", "0.0.0.0:1");
    let (cert, key) = (("tls.cert_file", "c"), ("tls.key_file", "k"));
    let tokens = ("server.tokens_file", "t");
    assert!(load("", &[], &[public, ("server.insecure", "true")]).is_ok());
    assert!(load("", &[], &[public, cert, key, tokens]).is_ok());
    // One of both is not enough, and what lacks is said.
    for (given, lacks, has) in [
        (&[public, tokens][..], "TLS (tls.cert_file", "server.tokens_file)"),
        (&[public, cert, key], "tokens (server.tokens_file)", "TLS ("),
    ] {
        let faults = refused("", &[], given);
        assert!(faults.len() == 1 && faults[0].contains(lacks) && !faults[0].contains(has), "{faults:?}");
    }
    // What actions report to is never encrypted.
    let worker = ("worker.listen", "0.0.0.0:2");
    assert!(refused("", &[], &[worker, cert, key, tokens])[0].contains("worker.listen"));
    assert!(load("", &[], &[worker, ("server.insecure", "true")]).is_ok());
}

#[test]
fn actions_report_where_they_can() {
    let url = |flags: &[(&str, &str)], bound: &str| {
        load("", &[], flags).expect("loads").report_url(bound.parse().expect("an address"))
    };
    let tls = [("tls.cert_file", "c"), ("tls.key_file", "k")];
    assert_eq!(url(&[], "127.0.0.1:1"), "http://127.0.0.1:1");
    assert_eq!(url(&tls, "0.0.0.0:1"), "https://127.0.0.1:1");
    assert_eq!(url(&[tls[0], tls[1], ("worker.listen", "[::1]:2")], "[::1]:2"), "http://[::1]:2");
}

#[test]
fn tables_have_a_place_of_their_own_where_the_database_has_such() {
    let postgres = ("database.url", "postgres://host/db");
    let config = load("", &[], &[postgres, ("database.schema", "jobs"), ("database.pooler", "true")]);
    assert_eq!(config.expect("loads").database.schema, "jobs");
    assert!(load("", &[], &[("database.table_prefix", "bj_2")]).is_ok());
    let mariadb = ("database.url", "mysql://host/db");
    assert!(load("", &[], &[mariadb, ("database.table_prefix", "bj_")]).is_ok());
    for given in [[mariadb, ("database.schema", "jobs")], [mariadb, ("database.pooler", "true")]] {
        let faults = refused("", &[], &given);
        assert!(faults.len() == 1 && faults[0].contains("PostgreSQL alone"), "{faults:?}");
    }
    assert!(refused("", &[], &[postgres, ("database.schema", "a b")])[0].contains("database.schema must be"));
}

#[test]
fn names_of_hosts_and_pages_are_plain() {
    let config =
        load("", &[("BACKJOB_HTTP_HOSTS", "Jobs.Example.com,[fd00::1],10.0.0.1")], &[]).expect("loads");
    assert_eq!(config.http.hosts, ["jobs.example.com", "[fd00::1]", "10.0.0.1"]);
    assert!(load("", &[], &[("http.cors_origins", "https://App.example.com,http://localhost:3000")]).is_ok());
    for host in ["a/b", "https://a", "a:1", "*", "a b", "*.example.com"] {
        assert!(refused("", &[], &[("http.hosts", host)])[0].contains("http.hosts must be"), "{host}");
    }
    for origin in ["*", "a", "https://", "https://a/", "https://*.a", "ftp://a", "null", "https://u@a"] {
        let faults = refused("", &[], &[("http.cors_origins", origin)]);
        assert!(faults[0].contains("http.cors_origins must be"), "{origin}");
    }
}

#[test]
fn tls_is_whole_or_not_there() {
    for (given, fault) in [
        (&[("tls.cert_file", "c")][..], "tls.key_file is needed with"),
        (&[("tls.key_file", "k")], "tls.cert_file is needed with"),
        (&[("tls.client_ca_file", "a")], "tls.client_ca_file needs"),
    ] {
        let faults = refused("", &[], given);
        assert!(faults.len() == 1 && faults[0].contains(fault), "{faults:?}");
    }
}

#[test]
fn what_is_out_of_range_is_refused() {
    for (key, value) in [
        ("server.shutdown_grace", "2h"),
        ("server.threads", "2000"),
        ("node.name", "a\nb"),
        ("node.advertise", "10.0.0.5:50051"),
        ("node.advertise", "http://host:1/path"),
        ("node.lease", "999ms"),
        ("node.lease", "6m"),
        ("database.url", ""),
        ("database.schema", "jobs"), // SQLite has none
        ("database.pooler", "true"),
        ("database.batch", "0"),
        ("database.batch", "1001"),
        ("database.page_cache", "63KiB"),
        ("database.page_cache", "17GiB"),
        ("database.table_prefix", "Jobs_"),
        ("database.table_prefix", "a\"b"),
        ("database.table_prefix", "1_"),
        ("database.table_prefix", "a_name_of_thirty_three_characters"),
        ("targets.default.max_in_flight", "0"),
        ("targets.default.max_in_flight", "10001"),
        ("targets.default.url", "http://"),
        ("targets.default.url", "unix:"),
        ("targets.default.url", "http://host/?a"),
        ("trigger.user_agent", "é"),
        ("trigger.report_url", "localhost:1"),
        ("trigger.pool_idle", "2h"),
        ("trigger.connect_timeout", "0"),
        ("trigger.max_response", "1KiB"),
        ("jobs.error_timeout", "0"),
        ("jobs.error_timeout", "2d"),
        ("jobs.response_timeout", "5ms"),
        ("jobs.max_duration", "366d"),
        ("jobs.cancel_grace", "2h"),
        ("jobs.flush_interval", "0"),
    ] {
        let faults = refused("", &[], &[(key, value)]);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with(&format!("--set: {key} ")), "{faults:?}");
    }
    assert_eq!(load("", &[], &[("jobs.response_timeout", "0")]).map(|c| c.jobs.response_timeout), Ok(None));
}

#[test]
fn no_secret_is_printed() {
    let config = load("", &[("BACKJOB_KEY", "canary")], &[("database.url", "postgres://u:canary@h/d")]);
    let config = config.expect("loads");
    assert_eq!(config.key.as_deref(), Some("canary"));
    assert!(!format!("{config:?}").contains("canary"));
    let bad = "[database]\nurl = [\"canary\"]\n[targets.default]\nurl = \"canary\"\n";
    let faults = refused(bad, &[("BACKJOB_KEY_FILE", "f"), ("BACKJOB_KEY", "canary")], &[("key", "canary")]);
    assert!(!faults.concat().contains("canary"), "{faults:?}");
    assert!(
        faults
            .iter()
            .any(|fault| fault.starts_with("BACKJOB_KEY_FILE: key_file and the variable BACKJOB_KEY"))
    );
}

#[test]
fn the_key_lies_beside_the_database() {
    for (url, expected) in [
        ("sqlite://backjob.db", Some("backjob.key")),
        ("sqlite:/var/lib/jobs.db?mode=rwc", Some("/var/lib/backjob.key")),
        ("sqlite:///var/lib/jobs.db", Some("/var/lib/backjob.key")),
        ("sqlite::memory:", None),
        ("sqlite://file?mode=memory", None),
        ("postgres://host/db", Some("backjob.key")),
    ] {
        let config = load("", &[], &[("database.url", url)]).expect("loads");
        assert_eq!(config.key_path(), expected.map(PathBuf::from), "{url}");
    }
    for name in ["BACKJOB_KEY_FILE", "BACKJOB_KEYS_FILE"] {
        let config = load("", &[(name, "/etc/k")], &[("database.url", "sqlite::memory:")]).expect("loads");
        assert_eq!(config.key_path(), Some("/etc/k".into()));
    }
    assert_eq!(load("", &[("BACKJOB_KEY", "k")], &[]).expect("loads").key_path(), None);
}

#[test]
fn actions_report_to_an_address_that_can_be_dialled() {
    let config = Config::default();
    for (bound, expected) in [
        ("127.0.0.1:50051", "http://127.0.0.1:50051"),
        ("0.0.0.0:1", "http://127.0.0.1:1"),
        ("[::]:1", "http://[::1]:1"),
        ("10.1.2.3:1", "http://10.1.2.3:1"),
    ] {
        assert_eq!(config.report_url(bound.parse().expect("an address")), expected);
    }
    let config = load("", &[], &[("trigger.report_url", "https://jobs.test")]).expect("loads");
    assert_eq!(config.report_url(SocketAddr::from(([0, 0, 0, 0], 1))), "https://jobs.test");
}

#[test]
fn rates_retention_and_ceilings_are_read_and_bounded() {
    let toml = "[targets.default]\nrate = \"100/m\"\n[retention]\nsucceeded = \"12h\"\nall = 0\n[jobs]\nexpire_after_ceiling = \"1h\"\n";
    let config = load(toml, &[], &[]).expect("loads");
    let per = Duration::from_secs(60);
    assert_eq!(config.targets["default"].rate, Some(Rate { count: 100, per }));
    assert_eq!((config.retention.succeeded, config.retention.all), (Some(Duration::from_secs(43_200)), None));
    for (key, value, says) in [
        ("targets.default.rate", "0/s", "must be a rate"),
        ("targets.default.rate", "5", "must be a rate"),
        ("targets.default.rate", "5/d", "must be a rate"),
        ("retention.all", "-1", "must be a span"),
        ("retention.succeeded", "-5d", "must be a span"),
        ("jobs.merge_policy", "sometimes", "must be \"join_pending\""),
        ("jobs.error_timeout_ceiling", "0", "must be 1 s to 24 h"),
        ("jobs.error_timeout_ceiling", "30s", "jobs.error_timeout is above its ceiling"),
        ("targets.default.identity", "maybe", "must be true or false"),
    ] {
        let faults = refused("", &[], &[(key, value)]);
        assert!(faults.iter().any(|fault| fault.contains(says)), "{key} = {value}: {faults:?}");
    }
    let faults = refused("[targets.default]\nidentity = false\nidentity_cookies = [\"s\"]\n", &[], &[]);
    assert!(faults[0].contains("contradicts identity = false"), "{faults:?}");
}

#[test]
fn what_is_shown_reads_as_the_same_and_says_where_it_came_from() {
    let toml = "[targets.shop]\nurl = \"https://localhost\"\nrate = \"90/h\"\nallow = [\"10.0.0.0/8\"]\n\
                allow_headers = [\"X-Real-Ip\"]\n[jobs]\nmax_duration = \"90m\"\n[log]\nformat = \"json\"\n";
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("backjob.toml"), toml).expect("written");
    let sources = Sources {
        folder: folder.path().to_owned(),
        file: None,
        environment: vec![("BACKJOB_JOBS_MAX_PENDING".into(), "7".into())],
        flags: vec![("server.listen".into(), "127.0.0.1:1".into())],
    };
    let (config, given) = Config::load_from(sources).expect("loads");
    let shown = config.shown(&given);
    for line in [
        "listen = \"127.0.0.1:1\"  # --set",
        "max_pending = 7  # BACKJOB_JOBS_MAX_PENDING",
        "max_duration = \"90m\"  # backjob.toml",
        "rate = \"90/h\"  # backjob.toml",
        "cancel_grace = \"10s\"  # default",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
    }
    assert_eq!(load(&shown, &[], &[]).expect("what is shown is a file of settings"), config);
    let secret =
        load("[database]\nurl = \"postgres://me:canary@host/db\"\n", &[("BACKJOB_KEY", "canary")], &[]);
    let shown = secret.expect("loads").shown(&BTreeMap::new());
    assert!(!shown.contains("canary") && shown.contains("postgres://(redacted)@host/db"), "{shown}");
    assert!(shown.contains("BACKJOB_KEY (redacted)"));
}
