//! Medians, ratios and markdown.

use std::fmt::Write;

use super::{DISTURBED, cell::Measured, idle::Memory};
use crate::kit::{machine::Cores, proxies::Proxy, workload::Workload};

/// What was measured in all rounds, per proxy; the first one is what ratios refer to.
pub struct Rounds {
    workload: Workload,
    pub workers: usize,
    pub cores: Cores,
    /// How it was sent.
    note: String,
    proxies: Vec<(String, Vec<Measured>)>,
}

/// One figure of all rounds of a proxy, beside those of the reference.
struct Figure {
    median: f64,
    ratios: Vec<f64>,
}

impl Rounds {
    pub fn new(
        workload: Workload,
        workers: usize,
        cores: Cores,
        note: String,
        proxies: &[Proxy],
    ) -> Rounds {
        Rounds {
            workload,
            workers,
            cores,
            note,
            proxies: proxies
                .iter()
                .map(|proxy| (proxy.to_string(), Vec::new()))
                .collect(),
        }
    }

    pub fn add(&mut self, proxy: usize, measured: Measured) {
        self.proxies[proxy].1.push(measured);
    }

    /// The rounds that count: those in which nobody was disturbed, or all where there is no such
    /// round.
    fn counted(&self) -> Vec<usize> {
        let rounds = self.proxies[0].1.len();
        let calm = |&round: &usize| {
            let mut turns = self.proxies.iter().map(|(_, turns)| &turns[round]);
            turns.all(|turn| turn.others < DISTURBED)
        };
        let counted: Vec<usize> = (0..rounds).filter(calm).collect();
        match counted.is_empty() {
            true => (0..rounds).collect(),
            false => counted,
        }
    }

    /// `None` where it was not measured.
    fn figure(&self, proxy: usize, of: impl Fn(&Measured) -> Option<f64>) -> Option<Figure> {
        let in_rounds = |proxy: usize| -> Option<Vec<f64>> {
            let turns = &self.proxies[proxy].1;
            let counted = self.counted();
            counted.into_iter().map(|round| of(&turns[round])).collect()
        };
        let own = in_rounds(proxy)?;
        let reference = in_rounds(0)?;
        Some(Figure {
            ratios: own.iter().zip(reference).map(|(a, b)| a / b).collect(),
            median: median(own),
        })
    }
}

/// A row for each proxy.
pub fn cells(rounds: &Rounds) -> String {
    let (reference, measured) = &rounds.proxies[0];
    let cores = &rounds.cores;
    let place = match cores.are_shared() {
        false => format!(
            "proxy on {}, load and upstream on {}",
            list(&cores.proxy),
            list(&cores.load)
        ),
        true => format!("proxy, load and upstream share {}", list(&cores.proxy)),
    };
    let mut text = format!(
        "### {}, {} worker{}\n\n{}; {place}; {} of {} rounds count; ratios to {reference}: median (least–greatest of the rounds)\n\n\
         | proxy | CPU µs/request | CPU ratio | requests/s | ratio | p50 µs | p99 µs | p99 ratio | others, at most |\n\
         |---|--:|:-:|--:|:-:|--:|--:|:-:|--:|\n",
        rounds.workload,
        rounds.workers,
        if rounds.workers == 1 { "" } else { "s" },
        rounds.workload.description(),
        rounds.counted().len(),
        measured.len(),
    );
    for (index, (name, turns)) in rounds.proxies.iter().enumerate() {
        let cpu = rounds.figure(index, |m| Some(m.cpu_us));
        let throughput = rounds.figure(index, |m| m.requests_per_second);
        let p50 = rounds.figure(index, |m| Some(m.latency?.p50_us));
        let counted = rounds.counted();
        let others = counted.iter().map(|&round| turns[round].others);
        let others = others.fold(0.0, f64::max);
        let p99 = rounds.figure(index, |m| Some(m.latency?.p99_us));
        line(
            &mut text,
            &[
                name.clone(),
                value(&cpu, 2),
                ratio(&cpu),
                value(&throughput, 0),
                ratio(&throughput),
                value(&p50, 0),
                value(&p99, 0),
                ratio(&p99),
                format!("{:.0} %", others * 100.0),
            ],
        );
    }
    text += "\nOthers: the part of the machine that was busy with what is not ours. Rounds in which it was 3 % \
             or more do not count, as long as others are left.\n";
    text + &rounds.note
}

/// How much more a proxy does with more workers.
pub fn scaling(one: &Rounds, other: &Rounds) -> String {
    let mut text = format!(
        "### {}: {} workers against {}\n\n\
         | proxy | by CPU time | by throughput |\n|---|--:|--:|\n",
        one.workload, other.workers, one.workers
    );
    let times = other.workers as f64 / one.workers as f64;
    for (index, (name, _)) in one.proxies.iter().enumerate() {
        let medians = |of: fn(&Measured) -> Option<f64>| {
            let less = one.figure(index, of)?.median;
            let more = other.figure(index, of)?.median;
            Some((less, more))
        };
        let by_cpu = medians(|m| Some(m.cpu_us)).map_or(String::new(), |(less, more)| {
            format!("{:.2}", less / more * times)
        });
        let by_throughput = medians(|m| m.requests_per_second)
            .map_or(String::new(), |(less, more)| format!("{:.2}", more / less));
        line(&mut text, &[name.clone(), by_cpu, by_throughput]);
    }
    text += "\nBy CPU time: the ratio of workers × (CPU time per request with the few) / (with the many), \
             measured in the same place: the scaling of a proxy that has its cores to itself and waits \
             for nobody. It shows work that is added by sharing; it does not show waiting, nor an \
             uneven share of connections.\n";
    text += match other.cores.are_shared() {
        true => {
            "By throughput: of no meaning here, load and upstream take their part of the same cores.\n"
        }
        false => "By throughput: true as long as the load's cores are not the narrow place.\n",
    };
    text
}

/// Resident memory.
pub fn idle(connections: usize, measured: &[Memory]) -> String {
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let mut text = format!(
        "### idle: {connections} keep-alive connections that made one request each, RSS\n\n\
         | proxy | MiB before | MiB after | KiB per connection |\n|---|--:|--:|--:|\n"
    );
    for Memory {
        proxy,
        before,
        after,
    } in measured
    {
        let each = after.saturating_sub(*before) as f64 / 1024.0 / connections as f64;
        line(
            &mut text,
            &[
                proxy.clone(),
                mib(*before),
                mib(*after),
                format!("{each:.2}"),
            ],
        );
    }
    text
}

fn line(text: &mut String, columns: &[String]) {
    writeln!(text, "| {} |", columns.join(" | ")).expect("a string takes it");
}

fn value(figure: &Option<Figure>, decimals: usize) -> String {
    figure
        .as_ref()
        .map_or(String::new(), |f| format!("{:.decimals$}", f.median))
}

fn ratio(figure: &Option<Figure>) -> String {
    let Some(Figure { ratios, .. }) = figure else {
        return String::new();
    };
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = ratios.iter().copied().fold(0.0, f64::max);
    format!("{:.2} ({least:.2}–{greatest:.2})", median(ratios.clone()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

fn list(cores: &[usize]) -> String {
    let numbers: Vec<String> = cores.iter().map(usize::to_string).collect();
    format!("core {}", numbers.join(", "))
}
