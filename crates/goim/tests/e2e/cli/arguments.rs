//! Arguments, configuration and environment: what is taken, and what is refused how.

use super::binary::{check_refused, goim, run};

#[test]
fn wrong_arguments_end_with_64() {
    check_refused(&["fly"], 64, &["unrecognized subcommand 'fly'"]);
    check_refused(&["serve", "--port", "1"], 64, &["unexpected argument '--port'"]);
    check_refused(&[], 64, &["Usage: goim"]);
    check_refused(&["bench", "room"], 64, &["goim-bench room"]);
    check_refused(&["push", "room", "live"], 64, &["must be type://room"]);
    check_refused(
        &["push", "room", "live://1", "--body", "x", "--server", "localhost"],
        64,
        &["http://host:port"],
    );
    check_refused(&["push", "room", "live://1", "--file", "/nonexistent"], 64, &["/nonexistent"]);
}

#[test]
fn wrong_configuration_is_refused_before_a_port_opens() {
    check_refused(
        &["serve", "--set", "comet.limits.handshake_timout=8s"],
        64,
        &[
            "unknown setting `comet.limits.handshake_timout`",
            "did you mean `comet.limits.handshake_timeout`?",
        ],
    );
    check_refused(
        &["serve", "--set", "comet.listen.tcp=3101"],
        64,
        &["comet.listen.tcp = \"3101\"", "must be a list"],
    );
    check_refused(
        &["serve", "--config", "/nonexistent.toml"],
        64,
        &["cannot read the configuration file /nonexistent.toml"],
    );
    check_refused(
        &["serve", "--set", "comet.listen.tcp_tls=:0", "--set", "comet.limits.handshake_timeout=0s"],
        64,
        &[
            "comet.listen.tcp_tls = [\"0.0.0.0:0\"] (--set): needs comet.tls.cert_file",
            "handshake_timeout = \"0s\" (--set): must be greater than zero",
        ],
    );
}

#[test]
fn the_environment_is_read_and_checked() {
    let output = goim(&["config", "--effective"]).env("GOIM_COMET_SHARDS", "3").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("# from the environment, GOIM_COMET_SHARDS\nshards = 3\n"), "{text}");
    let output = goim(&["config", "--check"]).env("GOIM_COMET_SHARD", "3").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("unknown environment variable `GOIM_COMET_SHARD`; did you mean `GOIM_COMET_SHARDS`?"),
        "{errors}"
    );
}

#[test]
fn the_printed_configuration_passes_the_check() {
    let path = std::env::temp_dir().join(format!("goim-cli-{}.toml", std::process::id()));
    std::fs::write(&path, run(&["config"]).stdout).unwrap();
    let output = run(&["config", "--check", "--config", path.to_str().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"the configuration is valid\n");
}

#[test]
fn help_and_version_are_no_mistakes() {
    for arguments in
        [&["--help"][..], &["--version"], &["version"], &["serve", "--help"], &["push", "room", "--help"]]
    {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
}
