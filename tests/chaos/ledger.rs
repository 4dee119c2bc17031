//! The ledger: what there was, and what it came from.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
    time::Duration,
};

use super::{
    books::{Books, Sort},
    counts,
    router::Resources,
    trouble::{Troubles, What},
    verdict::Row,
};

/// What is printed at the end.
pub struct Ledger<'a> {
    pub books: &'a Books,
    pub troubles: &'a Troubles,
    /// How often what was done.
    pub done: &'a BTreeMap<&'static str, u64>,
    /// The router at rest, from the beginning to the end.
    pub rests: &'a [Resources],
    /// Its memory at work: the medians of the first and the last quarter.
    pub memory: Option<(u64, u64)>,
    pub took: Duration,
}

impl Display for Ledger<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.requests(f)?;
        writeln!(f, "\nwhat was done to the router")?;
        for (what, count) in self.done {
            line(f, what, &[*count])?;
        }
        writeln!(
            f,
            "\n{:44}{:>10}",
            "failures in the log, and what they come from", ""
        )?;
        for (what, count) in &self.books.explained {
            line(f, what, &[*count])?;
        }
        writeln!(f, "\nhandshakes of clients")?;
        for (what, count) in &self.books.handshakes {
            line(f, what, &[*count])?;
        }
        writeln!(f)?;
        let replayed = self.books.told.get(counts::REPLAYED);
        line(f, "lines of the access log", &[self.books.lines])?;
        line(
            f,
            "of what the router answers by itself",
            &[self.books.nameless.1],
        )?;
        line(f, "sent to main as well", &[replayed.copied().unwrap_or(0)])?;
        let (lags, lag) = self.troubles.total(What::Lag);
        writeln!(
            f,
            "{:44}{lags:>10}  {lag:.1?} in all",
            "moments when the machine was late"
        )?;
        self.resources(f)
    }
}

impl Ledger<'_> {
    fn requests(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "\n{:44}", "requests")?;
        for sort in Sort::ALL {
            write!(f, "{:>10}", sort.label())?;
        }
        writeln!(f, "{:>10}", "all")?;
        let count = |row, sort| self.books.rows.get(&(row, sort)).copied().unwrap_or(0);
        for row in Row::ALL {
            with_sum(f, row.label(), Sort::ALL.map(|sort| count(row, sort)))?;
        }
        let of_all = |sort| Row::ALL.iter().map(|row| count(*row, sort)).sum();
        with_sum(f, "begun", Sort::ALL.map(of_all))
    }

    fn resources(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (Some(first), Some(last)) = (self.rests.first(), self.rests.last()) else {
            return Ok(());
        };
        writeln!(
            f,
            "\n{:44}{:>10}{:>10}",
            "the router", "at first", "at last"
        )?;
        let of = |what: fn(&Resources) -> u64| [what(first), what(last)];
        line(f, "descriptors", &of(|it| it.descriptors as u64))?;
        line(f, "threads", &of(|it| it.threads as u64))?;
        line(f, "memory at rest, KiB", &of(|it| it.memory >> 10))?;
        if let Some((first, last)) = self.memory {
            line(f, "memory at work, KiB", &[first >> 10, last >> 10])?;
        }
        let cpu = last.cpu.as_secs_f64() / self.took.as_secs_f64();
        writeln!(
            f,
            "{:44}{:>9.0}%",
            "of a core, the last process",
            cpu * 100.0
        )
    }
}

fn with_sum<const N: usize>(f: &mut Formatter<'_>, what: &str, counts: [u64; N]) -> fmt::Result {
    write!(f, "{what:44}")?;
    for count in counts {
        write!(f, "{count:>10}")?;
    }
    writeln!(f, "{:>10}", counts.iter().sum::<u64>())
}

fn line(f: &mut Formatter<'_>, what: &str, counts: &[u64]) -> fmt::Result {
    write!(f, "{what:44}")?;
    for count in counts {
        write!(f, "{count:>10}")?;
    }
    writeln!(f)
}
