//! The manual page: what the command line says of itself, and what else belongs on it.

use std::{collections::BTreeMap, io};

use clap::{Arg, Command, builder::StyledStr};
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, italic, roman},
};

/// A section that is terms and what they mean.
struct Section {
    title: &'static str,
    says: &'static str,
    terms: &'static [(&'static str, &'static str)],
}

const REST: &[Section] = &[
    Section {
        title: "SIGNALS",
        says: "",
        terms: &[
            (
                "SIGTERM, SIGINT",
                "Drain: no new connections are taken, and what is in flight ends, for router-server.shutdown-timeout at \
                 most. A second one stops at once.",
            ),
            (
                "SIGHUP",
                "Read the configuration again, and the files that it names, and put it in force: whole or not at all. If \
                 something is wrong with it, the log says so and all stays as it was.",
            ),
            (
                "SIGUSR2",
                "Start the program anew, with the listening sockets and what was counted. When it serves, this process \
                 takes no more connections, finishes what it has, and ends. If it does not come up, this one goes on.",
            ),
        ],
    },
    Section {
        title: "ENVIRONMENT",
        says: "",
        terms: &[
            (
                "CANARY_ROUTER_...",
                "A key of the configuration: its path in upper case, - as _, with __ between section and key. \
                 CANARY_ROUTER_CIRCUIT_BREAKER__ERROR_LIMIT_CANARY=5 is error-limit-canary in circuit-breaker. It wins over \
                 the file. One that is not known is an error.",
            ),
            (
                "CANARY_ROUTER_URL, CANARY_ROUTER_TOKEN_FILE",
                "What --url and --token-file are unless they are given.",
            ),
            (
                "LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES",
                "Sockets of a service manager (sd_listen_fds(3)): one called proxy, one called instrumentation, or by the \
                 ports of the configuration.",
            ),
            (
                "NOTIFY_SOCKET",
                "Where a service manager is told of READY, RELOADING, STOPPING and MAINPID (sd_notify(3)).",
            ),
        ],
    },
    Section {
        title: "FILES",
        says: "Relative paths start at the working directory.",
        terms: &[
            (
                "config.json",
                "The configuration, where -c names no other. It need not be there if the environment has a key.",
            ),
            (
                "state.file",
                "Where the configuration says so, what survives a restart. Beside it are a file that ends with .lock, which \
                 keeps a second router away, and one that ends with .new, which is renamed.",
            ),
        ],
    },
    Section {
        title: "EXIT STATUS",
        says: "",
        terms: &[
            ("0", "It drained and ended, or the command worked."),
            (
                "1",
                "The configuration cannot be used, the router cannot start, it was stopped by a second signal, or the \
                 command did not work. What is wrong is said on stderr, or in the log once there is one.",
            ),
            ("2", "The command line makes no sense."),
        ],
    },
    Section {
        title: "EXAMPLES",
        says: "",
        terms: &[
            (
                "canary-router check -c /etc/canary-router/config.json",
                "Whether the router can be started, or started again, with this file.",
            ),
            (
                "canary-router schema --markdown",
                "Every key of the configuration, with its variable and its default.",
            ),
            (
                "canary-router status --watch",
                "How the router on this machine is doing, each second.",
            ),
        ],
    },
];

/// The page of this program, for man(1).
pub(super) fn page(mut program: Command) -> io::Result<Vec<u8>> {
    // `help` is no command of ours.
    program = program.disable_help_subcommand(true);
    program.build();
    let man = Man::new(program.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    // Names of variables and paths are not to be hyphenated.
    Roff::new()
        .control("nh", [])
        .control("ad", ["l"])
        .to_writer(&mut page)?;
    man.render_name_section(&mut page)?;
    synopsis().to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    let mut rest = Roff::new();
    commands(&mut rest, &program);
    for section in REST {
        rest.control("SH", [section.title]);
        if !section.says.is_empty() {
            rest.text([roman(section.says)]);
        }
        for (term, says) in section.terms {
            rest.control("TP", [])
                .text([bold(*term)])
                .text([roman(*says)]);
        }
    }
    rest.to_writer(&mut page)?;
    Ok(page)
}

fn synopsis() -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["SYNOPSIS"])
        .text([
            bold("canary-router"),
            roman(" [-c "),
            italic("FILE"),
            roman("]"),
        ])
        .control("br", [])
        .text([
            bold("canary-router "),
            italic("COMMAND"),
            roman(" [OPTIONS]"),
        ]);
    page
}

fn commands(page: &mut Roff, program: &Command) {
    let commands = || {
        program
            .get_subcommands()
            .filter(|command| !command.is_hide_set())
    };
    // What several take stands once, behind them.
    let mut takers: BTreeMap<&str, (&Arg, usize)> = BTreeMap::new();
    for option in commands().flat_map(options) {
        takers
            .entry(option.get_id().as_str())
            .or_insert((option, 0))
            .1 += 1;
    }
    let is_shared = |option: &Arg| takers[option.get_id().as_str()].1 > 1;

    page.control("SH", ["COMMANDS"]);
    for command in commands() {
        page.control("SS", [command.get_name()]);
        let usage = command.clone().render_usage().to_string();
        page.text([bold(usage.trim_start_matches("Usage: "))]);
        page.control("PP", []);
        let says = command.get_long_about().or(command.get_about());
        paragraphs(page, says);
        for argument in command.get_positionals() {
            term(page, argument, italic(format!("{argument}")));
        }
        for option in options(command).filter(|option| !is_shared(option)) {
            term(page, option, spelt(option));
        }
    }
    page.control("SS", ["Options of the commands that talk to a router"]);
    for (option, _) in takers.values().filter(|(_, takers)| *takers > 1) {
        term(page, option, spelt(option));
    }
}

fn spelt(option: &Arg) -> Inline {
    match option.get_short() {
        Some(short) => bold(format!("-{short}, {option}")),
        None => bold(option.to_string()),
    }
}

fn options(command: &Command) -> impl Iterator<Item = &Arg> {
    let is_ours = |option: &&Arg| !option.is_hide_set() && option.get_id() != "help";
    command
        .get_opts()
        .chain(
            command.get_arguments().filter(|argument| {
                !argument.is_positional() && !argument.get_action().takes_values()
            }),
        )
        .filter(is_ours)
}

fn term(page: &mut Roff, argument: &Arg, name: Inline) {
    page.control("TP", []).text([name]);
    paragraphs(page, argument.get_long_help().or(argument.get_help()));
    let takes_values = argument.get_action().takes_values();
    let words = argument.get_possible_values();
    let words = words
        .iter()
        .filter(|word| takes_values && !word.is_hide_set());
    for word in words {
        page.control("RS", [])
            .control("TP", [])
            .text([bold(word.get_name())]);
        paragraphs(page, word.get_help());
        page.control("RE", []);
    }
    let defaults = argument
        .get_default_values()
        .iter()
        .filter(|_| takes_values);
    for default in defaults {
        page.text([roman(format!("[default: {}]", default.to_string_lossy()))]);
    }
    if let Some(variable) = argument.get_env() {
        page.text([roman(format!(
            "[environment: {}]",
            variable.to_string_lossy()
        ))]);
    }
}

fn paragraphs(page: &mut Roff, says: Option<&StyledStr>) {
    let says = says.map(ToString::to_string).unwrap_or_default();
    for line in says.lines() {
        match line.trim() {
            "" => page.control("PP", []),
            line => page.text([roman(line)]),
        };
    }
}
