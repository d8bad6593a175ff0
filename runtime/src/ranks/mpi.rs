//! The exchange by an MPI library (feature `mpi`, crate rsmpi).
//!
//! One thread owns the library: it starts what it is told to, one collective call after another, and looks whether it has ended, with short
//! sleeps between. So communication goes on while the other threads compute, and a rank that waits leaves the processor to those that
//! share it. MPI's own answer to a fault is kept: it ends all ranks.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

use mpi::Threading;
use mpi::collective::CommunicatorCollectives;
use mpi::datatype::PartitionMut;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::Root;

use super::{Arrival, Exchange};
use crate::error::{Result, RuntimeError};

/// Looks that are taken without a sleep between them.
const EAGER: u32 = 64;
/// The first sleep between two looks, and the longest.
const SLEEPS: [Duration; 2] = [Duration::from_micros(10), Duration::from_micros(200)];
/// How long a rank that aborts gives the library to end it.
const ABORT: Duration = Duration::from_secs(10);

/// Variables by which `mpirun`, Hydra and Slurm tell a process that it is a rank.
const RANK_VARIABLES: [&str; 3] = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"];

/// Whether this process was started as a rank.
#[must_use]
pub fn is_rank() -> bool {
    RANK_VARIABLES.iter().any(|name| std::env::var_os(name).is_some())
}

enum Job {
    Gather { own: Vec<u64>, counts: Vec<i32>, reply: Sender<Vec<u64>> },
    Abort(i32),
}

/// Where a rank is.
#[derive(Clone, Copy, Debug)]
struct Place {
    rank: usize,
    size: usize,
    /// The first rank on the same machine.
    machine: usize,
}

/// All ranks that were started together.
pub struct World {
    place: Place,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

fn failed(reason: &str) -> RuntimeError {
    RuntimeError::Ranks(format!("the MPI library cannot be used: {reason}"))
}

fn place_of(world: &SimpleCommunicator) -> Place {
    let local = world.split_shared(world.rank());
    let mut machine = world.rank();
    local.process_at_rank(0).broadcast_into(&mut machine);
    Place { rank: world.rank() as usize, size: world.size() as usize, machine: machine as usize }
}

/// Gathers; looks at new jobs meanwhile, since one may be to abort.
fn gather(world: &SimpleCommunicator, own: &[u64], counts: &[i32], mut look: impl FnMut()) -> Vec<u64> {
    let displacements: Vec<i32> = counts.iter().scan(0, |sum, &n| Some(std::mem::replace(sum, *sum + n))).collect();
    let mut arrived = vec![0_u64; counts.iter().map(|&n| n as usize).sum()];
    let mut partition = PartitionMut::new(&mut arrived[..], counts, &displacements[..]);
    mpi::request::scope(|scope| {
        let mut request = world.immediate_all_gather_varcount_into(scope, own, &mut partition);
        let (mut looks, mut sleep) = (0, SLEEPS[0]);
        while let Err(pending) = request.test() {
            request = pending;
            looks += 1;
            if looks < EAGER {
                std::thread::yield_now();
                continue;
            }
            look();
            std::thread::sleep(sleep);
            sleep = (2 * sleep).min(SLEEPS[1]);
        }
    });
    arrived
}

/// Does jobs until there is nobody left to give them.
fn serve(world: &SimpleCommunicator, jobs: &Receiver<Job>) {
    let mut waiting = VecDeque::new();
    loop {
        let job = match waiting.pop_front() {
            Some(job) => job,
            None => match jobs.recv() {
                Ok(job) => job,
                Err(_) => return,
            },
        };
        match job {
            Job::Abort(status) => world.abort(status),
            Job::Gather { own, counts, reply } => {
                let look = || match jobs.try_recv() {
                    Ok(Job::Abort(status)) => world.abort(status),
                    Ok(job) => waiting.push_back(job),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => (),
                };
                // Whoever asked may have gone.
                _ = reply.send(gather(world, &own, &counts, look));
            }
        }
    }
}

impl World {
    /// Starts MPI, and waits for the other ranks to do so.
    ///
    /// # Errors
    /// The library was started before, or cannot be used from a thread.
    pub fn start() -> Result<Self> {
        let (jobs, receiver) = mpsc::channel();
        let (told, place) = mpsc::channel();
        let body = move || {
            let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Funneled) else {
                _ = told.send(Err("it was started before"));
                return;
            };
            if threading < Threading::Funneled {
                _ = told.send(Err("it was built without support of threads"));
                return;
            }
            let world = universe.world();
            if told.send(Ok(place_of(&world))).is_ok() {
                serve(&world, &receiver);
            }
        };
        let thread = std::thread::Builder::new().name("mpi".into()).spawn(body).map_err(|e| failed(&e.to_string()))?;
        let place = place.recv().map_err(|_| failed("it ended while it was started"))?.map_err(failed)?;
        Ok(Self { place, jobs: Some(jobs), thread: Some(thread) })
    }

    /// The first rank on this rank's machine: it names the machine.
    #[must_use]
    pub fn machine(&self) -> usize {
        self.place.machine
    }

    /// Ends all ranks with this exit status, at once.
    pub fn abort(&self, status: u8) -> ! {
        if let Some(jobs) = &self.jobs {
            _ = jobs.send(Job::Abort(status.into()));
            // The library ends the process meanwhile.
            std::thread::sleep(ABORT);
        }
        std::process::exit(status.into())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

impl Exchange for World {
    fn rank(&self) -> usize {
        self.place.rank
    }

    fn size(&self) -> usize {
        self.place.size
    }

    fn gather(&self, own: Vec<u64>, counts: &[usize]) -> Result<Arrival> {
        let many = |_| RuntimeError::Internal("more words than MPI can send at once".into());
        let whole: usize = counts.iter().sum();
        i32::try_from(whole).map_err(many)?;
        let counts = counts.iter().map(|&n| i32::try_from(n)).collect::<std::result::Result<_, _>>().map_err(many)?;
        let (reply, receiver) = mpsc::channel();
        let ended = || RuntimeError::Internal("the thread of MPI ended early".into());
        self.jobs.as_ref().ok_or_else(ended)?.send(Job::Gather { own, counts, reply }).map_err(|_| ended())?;
        Ok(Arrival::new(receiver))
    }
}
