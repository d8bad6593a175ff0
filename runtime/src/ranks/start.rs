//! How a shared run starts: what the ranks must have in common, and how many threads each takes.
//!
//! Each rank reads circuit, server key and input for itself, from wherever its machine has them; nothing of them travels but their digests.
//! Whatever is wrong on one rank is known to all before the work starts, and told once, by rank 0.

use super::{Exchange, gather_text};
use crate::checkpoint::Identity;
use crate::error::{Result, RuntimeError};

/// What ranks must have in common beside files: the program, and the way they talk.
pub const VERSION: &str = concat!("thex ", env!("CARGO_PKG_VERSION"), ", ranks 1");

/// Between the fields of what ranks tell each other.
const FIELD: char = '\u{1f}';

/// A rank, for people: `rank 3 on b`.
fn name(rank: usize, host: &str) -> String {
    format!("rank {rank} on {host}")
}

/// The name of this machine.
#[must_use]
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "?".into() } else { name.trim().to_owned() }
}

/// What a rank says before the work starts: its version, its host, and what it has, or why it has nothing.
pub type Greeting<'a> = std::result::Result<&'a Identity, &'a RuntimeError>;

fn write(version: &str, host: &str, greeting: Greeting<'_>) -> String {
    let has = match greeting {
        Ok(identity) => ["", &identity.circuit, &identity.key, &identity.input].map(str::to_owned),
        Err(error) => [format!("error[{}]: {error}", error.code()), String::new(), String::new(), String::new()],
    };
    [&[version.to_owned(), host.to_owned()], has.as_slice()].concat().join(&FIELD.to_string())
}

/// Version, host, error, and the three digests.
fn fields(text: &str) -> [&str; 6] {
    let mut fields = text.split(FIELD);
    std::array::from_fn(|_| fields.next().unwrap_or(""))
}

/// Refuses ranks that do not have the same, by what each of them said.
fn compare(told: &[String]) -> Result<()> {
    let all: Vec<[&str; 6]> = told.iter().map(|text| fields(text)).collect();
    let Some(first) = all.first() else { return Ok(()) };
    let differs = |field: usize| all.iter().position(|rank| rank[field] != first[field]);
    let mismatch = |what: &str, field: usize, rank: usize, advice: &str| RuntimeError::Mismatch {
        left: format!("the {what} of {}", name(0, first[1])),
        right: format!("that of {}", name(rank, all[rank][1])),
        reason: format!("one is {}, the other {}; {advice}", short(first[field]), short(all[rank][field])),
    };
    if let Some(rank) = differs(0) {
        return Err(mismatch("program", 0, rank, "install the same version of thex on all machines"));
    }
    if let Some(rank) = all.iter().position(|rank| !rank[2].is_empty()) {
        return Err(RuntimeError::Ranks(format!("{} cannot start: {}", name(rank, all[rank][1]), all[rank][2])));
    }
    for (field, what) in [(3, "circuit"), (4, "server key"), (5, "input")] {
        if let Some(rank) = differs(field) {
            return Err(mismatch(what, field, rank, "give all ranks the same file, on every machine"));
        }
    }
    Ok(())
}

fn short(text: &str) -> &str {
    // A digest, or a version.
    text.get(..16).filter(|_| text.len() == 64).unwrap_or(text)
}

/// Exchanges greetings, so that all ranks know what is wrong; gives back what is ready where nothing is.
///
/// # Errors
/// A rank cannot start, or has another version, circuit, server key or input than rank 0. All ranks have the same error, but one that cannot
/// start has its own.
pub fn greet<T>(exchange: &dyn Exchange, own: Result<(T, Identity)>) -> Result<T> {
    let text = write(VERSION, &host(), own.as_ref().map(|(_, identity)| identity));
    let told = gather_text(exchange, &text)?;
    let (ready, _) = own?;
    compare(&told).map(|()| ready)
}

/// Where the ranks are, and what the system lets them use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seats {
    /// Threads of each rank.
    pub threads: Vec<usize>,
    /// Machines in all.
    pub machines: usize,
    /// Ranks on this rank's machine.
    pub neighbours: usize,
    /// What the user should know: processors that the ranks of this machine may not use.
    pub note: Option<String>,
}

/// What one rank says of its seat.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seat {
    machine: usize,
    /// Threads that were asked for; 0 if none were.
    wanted: usize,
    /// Processors that it may use, how many, and of how many.
    allowed: String,
    available: usize,
    online: usize,
    /// Whether `mpirun` chose them.
    bound: bool,
}

/// The variable by which `mpirun` says that it bound a rank.
const BOUND: &str = "OMPI_MCA_orte_bound_at_launch";

impl Seat {
    fn text(&self) -> String {
        let bound = usize::from(self.bound);
        format!("{} {} {} {} {bound} {}", self.machine, self.wanted, self.available, self.online, self.allowed)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.splitn(6, ' ');
        let mut number = || words.next()?.parse::<usize>().ok();
        let (machine, wanted, available, online, bound) = (number()?, number()?, number()?, number()?, number()? > 0);
        Some(Self { machine, wanted, available, online, bound, allowed: words.next()?.to_owned() })
    }

    /// The processors that it may use, shared evenly with the ranks of its machine that may use the same ones.
    fn threads(&self, all: &[Self]) -> usize {
        if self.wanted > 0 {
            return self.wanted;
        }
        let sharers = all.iter().filter(|s| s.machine == self.machine && s.allowed == self.allowed).count();
        (self.available / sharers.max(1)).max(1)
    }
}

fn status_line(key: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_owned()
}

/// Processors in a list as Linux writes it, `0-3,8`.
fn count(list: &str) -> usize {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(last.trim().parse::<usize>().ok()?.saturating_sub(first.trim().parse().ok()?) + 1)
    };
    list.split(',').filter_map(range).sum()
}

/// Tells all ranks where this one is and how many threads it shall have (0: its part of the machine), and learns it of them.
///
/// # Errors
/// The exchange failed.
pub fn seats(exchange: &dyn Exchange, machine: usize, wanted: usize) -> Result<Seats> {
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").map_or(available, |list| count(&list));
    let (allowed, bound) = (status_line("Cpus_allowed_list:"), std::env::var_os(BOUND).is_some());
    let seat = Seat { machine, wanted, allowed, available, online, bound };
    let told = gather_text(exchange, &seat.text())?;
    let all: Option<Vec<Seat>> = told.iter().map(|text| Seat::parse(text)).collect();
    let all = all.ok_or_else(|| RuntimeError::Ranks("the ranks are not of the same version of thex".into()))?;
    Ok(Seats::new(&all, exchange.rank()))
}

impl Seats {
    fn new(all: &[Seat], rank: usize) -> Self {
        let threads: Vec<usize> = all.iter().map(|seat| seat.threads(all)).collect();
        let mut machines: Vec<usize> = all.iter().map(|seat| seat.machine).collect();
        machines.sort_unstable();
        machines.dedup();
        let own = &all[rank];
        let here = || all.iter().filter(|seat| seat.machine == own.machine);
        Self { machines: machines.len(), neighbours: here().count(), note: note(own, here()), threads }
    }
}

/// What to say of ranks that `mpirun` bound to fewer processors than their machine has.
fn note<'a>(own: &Seat, here: impl Iterator<Item = &'a Seat>) -> Option<String> {
    let mut lists: Vec<&str> = here.map(|seat| seat.allowed.as_str()).collect();
    lists.sort_unstable();
    lists.dedup();
    let usable: usize = lists.iter().map(|list| count(list)).sum();
    (own.bound && usable < own.online).then(|| {
        format!(
            "mpirun bound the ranks of this machine to {usable} of its {} processors; with `--bind-to none` they use all",
            own.online
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn identity(circuit: char) -> Identity {
        let digest = |c: char| c.to_string().repeat(64);
        Identity { circuit: digest(circuit), key: digest('b'), input: digest('c') }
    }

    fn told(version: &str, greeting: Greeting<'_>) -> String {
        write(version, "host", greeting)
    }

    #[test]
    fn ranks_must_have_the_same() {
        let (ours, other) = (identity('a'), identity('d'));
        assert!(compare(&[told(VERSION, Ok(&ours)), told(VERSION, Ok(&ours))]).is_ok());
        let error =
            compare(&[told(VERSION, Ok(&ours)), told(VERSION, Ok(&ours)), told(VERSION, Ok(&other))]).unwrap_err();
        assert_eq!(error.code(), "TX0003");
        let text = error.to_string();
        assert!(text.contains("the circuit of rank 0 on host and that of rank 2 on host"), "{text}");
        assert!(text.contains("aaaaaaaaaaaaaaaa, the other dddddddddddddddd"), "{text}");
        let mut other = identity('a');
        other.key = "e".repeat(64);
        let text = compare(&[told(VERSION, Ok(&ours)), told(VERSION, Ok(&other))]).unwrap_err().to_string();
        assert!(text.contains("the server key of rank 0"), "{text}");
    }

    /// Versions come first: another version may say anything else in another way.
    #[test]
    fn versions_come_first_and_faults_second() {
        let ours = identity('a');
        let fault = RuntimeError::Input("no such thing".into());
        let greetings = [told(VERSION, Ok(&ours)), told(VERSION, Err(&fault)), "thex 9.9.9, ranks 7".into()];
        let text = compare(&greetings).unwrap_err().to_string();
        assert!(text.contains("the program of rank 0") && text.contains("the other thex 9.9.9, ranks 7"), "{text}");
        let error = compare(&greetings[..2]).unwrap_err();
        assert_eq!(error.code(), "TX0111");
        assert!(error.to_string().contains("rank 1 on host cannot start: error[TX0010]: no such thing"), "{error}");
    }

    fn seat(machine: usize, wanted: usize, allowed: &str, online: usize) -> Seat {
        Seat { machine, wanted, allowed: allowed.into(), available: count(allowed), online, bound: true }
    }

    #[test]
    fn machines_are_divided_among_their_ranks() {
        let seats = Seats::new(&[seat(0, 0, "0-15", 16), seat(0, 0, "0-15", 16), seat(2, 0, "0-15", 16)], 2);
        assert_eq!((seats.threads, seats.machines, seats.neighbours, seats.note), (vec![8, 8, 16], 2, 1, None));
        let seats = Seats::new(&[seat(0, 3, "0-1", 2), seat(0, 0, "0-1", 2), seat(0, 0, "0-1", 2)], 0);
        assert_eq!((seats.threads, seats.note), (vec![3, 1, 1], None));
    }

    #[test]
    fn bound_ranks_are_told_so() {
        let seats = Seats::new(&[seat(0, 0, "0", 16), seat(0, 0, "1", 16)], 0);
        assert_eq!(seats.threads, [1, 1]);
        assert!(seats.note.unwrap().contains("to 2 of its 16"));
        let seats = Seats::new(&[seat(0, 0, "0-7", 16), seat(0, 0, "8-15", 16)], 0);
        assert_eq!((seats.threads, seats.note), (vec![8, 8], None));
    }

    #[test]
    fn seats_survive_being_told() {
        let seat = seat(3, 2, "0-3,8", 16);
        assert_eq!(seat.available, 5);
        assert_eq!(Seat::parse(&seat.text()), Some(seat));
        assert_eq!(Seat::parse("0 1"), None);
    }
}
