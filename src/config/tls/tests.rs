use std::{fs, path::PathBuf, process};

use rcgen::generate_simple_self_signed;
use serde_json::{Value, json};

use super::*;
use crate::config::tests::{problems, read, refused, with};

const SERVER: &str = "/router-server/tls";
const SERVICES: &str = "/proxy-client/to-main-and-canary/tls";

/// Files of one test, gone at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("canary-router-{}-{name}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _leftover = fs::remove_dir_all(&self.0);
    }
}

/// A certificate for this name, and its key.
fn pair(name: &str) -> (String, String) {
    let made = generate_simple_self_signed([name.to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn server(tls: Value) -> Value {
    with(json!({"router-server": {"tls": tls}}))
}

/// Of clients that have somebody to speak TLS with.
fn clients(tls: Value) -> Value {
    with(json!({
        "main-target": "https://main.example",
        "proxy-client": {"to-main-and-canary": {"tls": tls}}
    }))
}

/// Nothing else is wrong.
#[track_caller]
fn refused_alone(file: Value, path: &str, hint: &str) {
    let found = problems(file.clone());
    assert_eq!(found.len(), 1, "{found:#?}");
    refused(file, path, hint);
}

#[test]
fn the_listener_speaks_tls_if_it_has_a_certificate() {
    let folder = Folder::new("tls-server");
    let (certificate, key) = pair("router.example");
    let (other, _) = pair("ca.example");
    let chain = folder.write("chain.pem", format!("{certificate}{other}"));
    let key = folder.write("key.pem", key);
    let file = server(json!({"certificate": chain, "private-key": key, "client-ca": chain}));
    let config = read(file);
    let tls = config.server.tls.clone().unwrap();
    let lengths = (
        tls.identity.cert.len(),
        tls.client_ca.clone().unwrap().len(),
    );
    assert_eq!(lengths, (2, 2));
    assert_eq!(tls.identity.keys_match(), Ok(()));
    // Where the files are is no secret, and what is in them is not shown.
    let shown = &config.effective;
    assert_eq!(
        shown.pointer("/router-server/tls/private-key"),
        Some(&json!(key))
    );
    assert!(
        format!("{config:?}").contains("ServerTls { certificates: 2, client_ca: Some(2), .. }")
    );
    assert_eq!(read(shown.clone()).server, config.server);

    let file = server(json!({"certificate": chain, "private-key": key}));
    let without = read(file).server;
    assert_eq!(without.tls.as_ref().unwrap().client_ca, None);
    assert_ne!(without, config.server);
}

#[test]
fn the_listener_speaks_no_tls_if_it_is_told_nothing_of_it() {
    for tls in [
        json!({}),
        json!(null),
        json!("off"),
        json!({"certificate": "", "private-key": " ", "client-ca": null}),
    ] {
        assert_eq!(read(server(tls)).server.tls, None);
    }
    refused(server(json!("on")), SERVER, "an object");
}

#[test]
fn a_certificate_and_its_key_can_be_in_one_file() {
    let folder = Folder::new("tls-one-file");
    let (certificate, key) = pair("router.example");
    let params = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    let both = folder.write(
        "both.pem",
        format!("of: nobody\n{params}{key}{certificate}"),
    );
    let config = read(server(json!({"certificate": both, "private-key": both})));
    assert_eq!(config.server.tls.unwrap().identity.cert.len(), 1);
}

#[test]
fn what_upstreams_are_shown_and_asked_for_is_read() {
    let folder = Folder::new("tls-clients");
    let (certificate, key) = pair("router.example");
    let certificate = folder.write("cert.pem", certificate);
    let key = folder.write("key.pem", key);
    let config = read(clients(json!({
        "ca": certificate, "certificate": certificate, "private-key": key,
        "server-name": "service.example"
    })));
    let tls = &config.main.client_tls;
    assert!(Arc::ptr_eq(tls, &config.canary.client_tls));
    assert_eq!(tls.ca.as_ref().unwrap().len(), 1);
    assert_eq!(tls.identity.as_ref().unwrap().cert.len(), 1);
    let name = ServerName::try_from("service.example").unwrap();
    assert_eq!(tls.server_name, Some(name));
    let again = read(config.effective.clone());
    assert_eq!(format!("{:?}", again.main), format!("{:?}", config.main));

    for (name, is_address) in [("localhost", false), ("10.0.0.1", true), ("::1", true)] {
        let config = read(clients(json!({"server-name": name})));
        let read = config.main.client_tls.server_name.clone().unwrap();
        assert_eq!(matches!(read, ServerName::IpAddress(_)), is_address);
    }
    let config = read(with(json!({
        "sidecar-url": "https://unix:/run/sidecar.sock",
        "proxy-client": {"to-sidecar": {"tls": {"ca": certificate, "server-name": "sidecar"}}}
    })));
    assert!(config.sidecar.unwrap().upstream.client_tls.ca.is_some());
    assert!(config.main.client_tls.ca.is_none());
}

#[test]
fn a_certificate_that_cannot_work_is_refused_where_it_is_named() {
    let folder = Folder::new("tls-certificates");
    let (certificate, key) = pair("router.example");
    let (other, other_key) = pair("other.example");
    let good = folder.write("good.pem", &certificate);
    let good_key = folder.write("key.pem", &key);
    let file = |name: &str, content: &str| folder.write(name, content);
    let of_no_certificate =
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
    for (certificate, hint) in [
        (file("empty", ""), "there is no certificate in"),
        (
            file("swapped", &key),
            "name a PEM file, which has them between",
        ),
        (
            file("cut", &certificate[..certificate.len() - 30]),
            "is not a PEM file: the END line of a section is missing; copy it anew",
        ),
        (
            file("dashes", &certificate.replacen("-----\n", "--\n", 1)),
            "a BEGIN line has not all of its dashes",
        ),
        (
            file("letters", &certificate.replacen("MII", "M!I", 1)),
            "what stands between BEGIN and END is not base64",
        ),
        (file("nothing", &of_no_certificate), "certificate 1 in"),
        (
            folder.0.join("none").to_str().unwrap().to_owned(),
            "No such file",
        ),
        (folder.0.to_str().unwrap().to_owned(), "it is not a file"),
    ] {
        let section = json!({"certificate": certificate, "private-key": good_key});
        for (file, path) in [
            (server(section.clone()), SERVER),
            (clients(section), SERVICES),
        ] {
            refused_alone(file, &format!("{path}/certificate"), hint);
        }
        let section = json!({"ca": certificate});
        refused_alone(clients(section), &format!("{SERVICES}/ca"), hint);
        let section =
            json!({"certificate": good, "private-key": good_key, "client-ca": certificate});
        refused_alone(server(section), &format!("{SERVER}/client-ca"), hint);
    }
    // Everything that is wrong is told at once.
    let bad = file("nothing-either", "");
    let tls = json!({"certificate": bad, "private-key": bad, "client-ca": bad});
    assert_eq!(problems(server(tls)).len(), 3);
    let second = file("second", &format!("{other}{of_no_certificate}{other_key}"));
    refused_alone(
        clients(json!({"ca": second})),
        &format!("{SERVICES}/ca"),
        "certificate 2 in",
    );
}

#[test]
fn a_key_that_cannot_work_is_refused_where_it_is_named_and_not_shown() {
    let folder = Folder::new("tls-keys");
    let (certificate, key) = pair("router.example");
    let (other, other_key) = pair("other.example");
    let good = folder.write("good.pem", &certificate);
    let chain = folder.write("chain.pem", format!("{other}{certificate}"));
    let good_key = folder.write("key.pem", &key);
    let file = |name: &str, content: &str| folder.write(name, content);
    let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n\
               c2VjcmV0\n-----END RSA PRIVATE KEY-----\n";
    let strange = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
    for (private_key, hint) in [
        (file("empty", ""), "there is no private key in"),
        (
            file("swapped", &certificate),
            "\"-----BEGIN PRIVATE KEY-----\"",
        ),
        (
            file("two", &format!("{key}{other_key}")),
            "there are 2 private keys in",
        ),
        (file("other", &other_key), "is not that of the certificate"),
        (
            file("encrypted", &encrypted),
            "`openssl pkey -in FILE -out NEW`",
        ),
        (file("old", old), "has a passphrase"),
        (file("cut", &key[..key.len() - 20]), "is not a PEM file"),
        (
            file("letters", &key.replacen("\nMI", "\nM!", 1)),
            "is not base64",
        ),
        (file("strange", strange), "of a kind that is not known"),
        (
            folder.0.join("none").to_str().unwrap().to_owned(),
            "No such file",
        ),
    ] {
        let section = json!({"certificate": good, "private-key": private_key});
        for (file, path) in [
            (server(section.clone()), SERVER),
            (clients(section), SERVICES),
        ] {
            refused_alone(file.clone(), &format!("{path}/private-key"), hint);
            let told = format!("{:?}", problems(file));
            let secret = key.lines().nth(1).unwrap();
            assert!(
                !told.contains(&secret[4..]) && !told.contains("c2Vj"),
                "{told}"
            );
        }
    }
    // The router's own certificate comes first.
    refused_alone(
        server(json!({"certificate": chain, "private-key": good_key})),
        &format!("{SERVER}/private-key"),
        "that the first certificate of /certificate beside it was made for",
    );
}

#[test]
fn a_certificate_and_its_key_are_set_both_or_neither() {
    let folder = Folder::new("tls-both");
    let (certificate, key) = pair("router.example");
    let certificate = folder.write("cert.pem", certificate);
    let key = folder.write("key.pem", key);
    for (section, missing) in [
        (json!({"certificate": certificate}), "private-key"),
        (json!({"private-key": key}), "certificate"),
    ] {
        for (file, path) in [
            (server(section.clone()), SERVER),
            (clients(section), SERVICES),
        ] {
            refused_alone(
                file,
                &format!("{path}/{missing}"),
                "is missing: name the PEM file",
            );
        }
    }
    let found = problems(server(json!({"client-ca": certificate})));
    let paths: Vec<&str> = found.iter().map(|(path, _)| &**path).collect();
    assert_eq!(
        paths,
        [
            format!("{SERVER}/certificate"),
            format!("{SERVER}/private-key")
        ]
    );
}

/// A router that does not start would be no help; what is expired is its peers' to say.
#[test]
fn a_certificate_that_has_expired_is_taken() {
    let folder = Folder::new("tls-expired");
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["router.example".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    let certificate = folder.write("cert.pem", params.self_signed(&key).unwrap().pem());
    let key = folder.write("key.pem", key.serialize_pem());
    let section = json!({"certificate": certificate, "private-key": key, "client-ca": certificate});
    assert!(read(server(section)).server.tls.is_some());
}

#[test]
fn a_name_that_no_certificate_can_have_is_refused() {
    for name in [
        "a b",
        "service.example:443",
        "[::1]",
        "https://service.example",
        "-",
    ] {
        refused_alone(
            clients(json!({"server-name": name})),
            &format!("{SERVICES}/server-name"),
            "write it as \"service.example\", without a port",
        );
    }
}

#[test]
fn whose_certificates_are_taken_and_that_any_is_contradict_each_other() {
    let folder = Folder::new("tls-contradiction");
    let ca = folder.write("ca.pem", pair("ca.example").0);
    refused_alone(
        clients(json!({"ca": ca, "insecure-skip-verify": true})),
        &format!("{SERVICES}/insecure-skip-verify"),
        "keep one of them",
    );
    read(clients(json!({"ca": ca, "insecure-skip-verify": false})));
}

#[test]
fn what_is_said_of_tls_that_nobody_speaks_is_refused() {
    let folder = Folder::new("tls-nobody");
    let (certificate, key) = pair("router.example");
    let certificate = folder.write("cert.pem", certificate);
    let key = folder.write("key.pem", key);
    let section = json!({
        "ca": certificate, "certificate": certificate, "private-key": key, "server-name": "a"
    });
    let of = |client: &str, more: Value| {
        let mut file = with(json!({"proxy-client": {client: {"tls": section}}}));
        let more = more.as_object().unwrap().clone();
        file.as_object_mut().unwrap().extend(more);
        file
    };
    for (client, more, why) in [
        (
            "to-main-and-canary",
            json!({"sidecar-url": "https://sidecar.example"}),
            "has no effect: neither /main-target nor /canary-target is https://; write that, or take \
             this out",
        ),
        (
            "to-sidecar",
            json!({}),
            "has no effect: /sidecar-url is not https://",
        ),
        (
            "to-sidecar",
            json!({"sidecar-url": "http://unix:/run/s.sock", "main-target": "https://main.example"}),
            "has no effect: /sidecar-url is not https://",
        ),
    ] {
        let file = of(client, more);
        assert_eq!(problems(file.clone()).len(), 4);
        for key in ["ca", "certificate", "private-key", "server-name"] {
            refused(
                file.clone(),
                &format!("/proxy-client/{client}/tls/{key}"),
                why,
            );
        }
    }
    // One of two is enough, and a URL that is none has been told.
    read(of(
        "to-main-and-canary",
        json!({"canary-target": "https://canary.example"}),
    ));
    for (client, more) in [
        ("to-main-and-canary", json!({"main-target": "main.example"})),
        ("to-main-and-canary", json!({"main-header-host": "a b"})),
        ("to-sidecar", json!({"sidecar-url": 7})),
        ("to-sidecar", json!({"sidecar-url": "sidecar.example"})),
    ] {
        assert_eq!(problems(of(client, more)).len(), 1);
    }
    // As old files have it.
    let insecure = json!({"tls": {"insecure-skip-verify": true}});
    read(with(
        json!({"proxy-client": {"to-main-and-canary": insecure, "to-sidecar": insecure}}),
    ));
}
