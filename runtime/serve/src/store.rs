//! What survives a crash: keys and jobs, in SQLite and in files beside it.
//!
//! ```text
//! DATA/thex.db              tables of keys, of who registered them, and of jobs
//! DATA/lock                 held while a server runs: two servers never share a folder
//! DATA/tmp/                 uploads under way; emptied at the start
//! DATA/keys/DIGEST          server keys
//! DATA/jobs/FOLDER/         input.ct, result.ct, checkpoint/
//! ```
//!
//! **Order of every change:** the file first (whole, synced, renamed), then the row, then the answer. What a crash leaves between the
//! first two steps is a file without a row, and [`Store::open`] removes those. Rows are committed with `synchronous = FULL`.
//!
//! The id of a job is the client's, and its own: two clients may use the same one. The same id with the same circuit, key and input is the
//! same job; with others it is a conflict.
//!
//! Alternatives rejected: keys and ciphertexts as blobs in the database (150 MB each, and read by path); one JSON file per job (no
//! transaction over quota and row).

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};

use crate::error::{Result, ServeError, disk};
use crate::upload::Received;
use crate::wire::{ErrorBody, JobProgress, JobState, JobStatus, KeyStatus, ResultInfo};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS keys (
        digest TEXT PRIMARY KEY, id TEXT NOT NULL, circuit TEXT NOT NULL, bytes INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS owners (
        client TEXT NOT NULL, digest TEXT NOT NULL REFERENCES keys(digest), PRIMARY KEY (client, digest)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS jobs (
        serial INTEGER PRIMARY KEY AUTOINCREMENT, client TEXT NOT NULL, id TEXT NOT NULL, folder TEXT NOT NULL UNIQUE,
        circuit TEXT NOT NULL, key TEXT NOT NULL, input TEXT NOT NULL, input_bytes INTEGER NOT NULL,
        state TEXT NOT NULL, pbs_total INTEGER NOT NULL, created REAL NOT NULL, started REAL, finished REAL,
        starts INTEGER NOT NULL DEFAULT 0, code TEXT, message TEXT, result TEXT, result_bytes INTEGER,
        UNIQUE (client, id)
    ) STRICT;
    CREATE INDEX IF NOT EXISTS unfinished ON jobs (state);
    PRAGMA user_version = 1;
";

/// Version of the tables. A database of another one is refused.
const SCHEMA_VERSION: i64 = 1;

/// Columns of a [`Job`], in the order that [`Job::read`] takes.
const COLUMNS: &str = "serial, client, folder, id, circuit, key, input, state, pbs_total, created, started, finished, starts, \
                       code, message, result, result_bytes";

/// A job as the store knows it.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its number; ascending in the order of submission.
    pub serial: i64,
    /// Whose it is.
    pub client: String,
    /// Its folder, below `jobs`.
    pub folder: String,
    /// What its client sees. Position, and progress of a running job, are the engine's to fill in.
    pub status: JobStatus,
}

impl Job {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let (state, total): (String, u64) = (row.get(7)?, row.get(8)?);
        let state = JobState::parse(&state).unwrap_or(JobState::Failed);
        let done = if state == JobState::Done { total } else { 0 };
        let (code, message): (Option<String>, Option<String>) = (row.get(13)?, row.get(14)?);
        let (result, bytes): (Option<String>, Option<u64>) = (row.get(15)?, row.get(16)?);
        let status = JobStatus {
            id: row.get(3)?,
            circuit: row.get(4)?,
            key: row.get(5)?,
            input: row.get(6)?,
            state,
            position: None,
            progress: JobProgress { pbs_done: done, pbs_total: total, ..JobProgress::default() },
            created: row.get(9)?,
            started: row.get(10)?,
            finished: row.get(11)?,
            starts: row.get(12)?,
            error: code.zip(message).map(|(code, message)| ErrorBody { code, message }),
            result: result.zip(bytes).map(|(digest, bytes)| ResultInfo { digest, bytes }),
        };
        Ok(Self { serial: row.get(0)?, client: row.get(1)?, folder: row.get(2)?, status })
    }
}

/// A submission that was received and checked.
pub struct NewJob<'a> {
    /// Whose it is.
    pub client: &'a str,
    /// The client's id for it.
    pub id: &'a str,
    /// Digest of the circuit.
    pub circuit: &'a str,
    /// Digest of the key.
    pub key: &'a str,
    /// The encrypted input.
    pub input: Received,
    /// Bootstraps that it takes.
    pub pbs_total: u64,
}

/// How many jobs and bytes are allowed.
#[derive(Clone, Copy, Debug)]
pub struct Quotas {
    /// Unfinished jobs, of all clients.
    pub queue: usize,
    /// Unfinished jobs of one client.
    pub client_jobs: usize,
    /// Keys of one client.
    pub client_keys: usize,
    /// Bytes of keys, inputs and results, of all clients.
    pub storage: u64,
}

/// Keys and jobs on disk.
pub struct Store {
    root: PathBuf,
    database: Mutex<Connection>,
    _lock: File,
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn full(quotas: &Quotas) -> ServeError {
    let gigabytes = quotas.storage as f64 / 1e9;
    ServeError::Full(format!(
        "the {gigabytes:.1} GB granted to this service are used up: delete results and keys that you need no longer"
    ))
}

impl Store {
    /// Opens a store, or makes one; removes what an earlier crash left; queues again what was running.
    ///
    /// # Errors
    /// The folder cannot be used, another server uses it, or its database has another version.
    pub fn open(root: &Path) -> Result<Self> {
        let usage = |e: std::io::Error| ServeError::Usage(format!("cannot use folder `{}`: {e}", root.display()));
        for folder in ["tmp", "keys", "jobs"] {
            std::fs::create_dir_all(root.join(folder)).map_err(usage)?;
        }
        let lock = File::create(root.join("lock")).map_err(usage)?;
        lock.try_lock().map_err(|_| {
            ServeError::Usage(format!("another server uses folder `{}`; give --data another", root.display()))
        })?;
        let database = Connection::open(root.join("thex.db"))?;
        database.pragma_update(None, "journal_mode", "WAL")?;
        database.pragma_update(None, "synchronous", "FULL")?;
        let version: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version != 0 && version != SCHEMA_VERSION {
            return Err(ServeError::Usage(format!(
                "folder `{}` was written by another version of thex",
                root.display()
            )));
        }
        database.execute_batch(SCHEMA)?;
        database.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'", [])?;
        let store = Self { root: root.to_owned(), database: Mutex::new(database), _lock: lock };
        store.sweep()?;
        Ok(store)
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes files that no row knows.
    fn sweep(&self) -> Result<()> {
        let database = self.database();
        let names = |sql: &str| -> rusqlite::Result<BTreeSet<String>> {
            database.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
        };
        self.keep_only("tmp", &BTreeSet::new())?;
        self.keep_only("keys", &names("SELECT digest FROM keys")?)?;
        self.keep_only("jobs", &names("SELECT folder FROM jobs")?)
    }

    fn keep_only(&self, folder: &str, known: &BTreeSet<String>) -> Result<()> {
        let failed = |e: std::io::Error| disk("clean the folder of data", &e);
        for entry in std::fs::read_dir(self.root.join(folder)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if known.contains(entry.file_name().to_string_lossy().as_ref()) {
                continue;
            }
            match entry.path().is_dir() {
                true => std::fs::remove_dir_all(entry.path()).map_err(failed)?,
                false => std::fs::remove_file(entry.path()).map_err(failed)?,
            }
        }
        Ok(())
    }

    /// Folder for uploads under way.
    #[must_use]
    pub fn uploads(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Where a key is.
    #[must_use]
    pub fn key_path(&self, digest: &str) -> PathBuf {
        self.root.join("keys").join(digest)
    }

    /// Where a job's files are.
    #[must_use]
    pub fn job_folder(&self, folder: &str) -> PathBuf {
        self.root.join("jobs").join(folder)
    }

    /// A file of a job.
    #[must_use]
    pub fn job_file(&self, job: &Job, name: &str) -> PathBuf {
        self.job_folder(&job.folder).join(name)
    }

    /// A key that this client registered.
    ///
    /// # Errors
    /// [`ServeError::NotFound`] if it did not.
    pub fn key(&self, client: &str, digest: &str) -> Result<KeyStatus> {
        let sql = "SELECT k.digest, k.id, k.circuit, k.bytes FROM keys k JOIN owners o ON o.digest = k.digest
                   WHERE o.client = ?1 AND k.digest = ?2";
        let found = self.database().prepare_cached(sql)?.query_row(params![client, digest], read_key).optional()?;
        found.ok_or_else(|| ServeError::NotFound("you have registered no server key with this digest".into()))
    }

    /// All keys of a client.
    ///
    /// # Errors
    /// The database failed.
    pub fn keys(&self, client: &str) -> Result<Vec<KeyStatus>> {
        let sql = "SELECT k.digest, k.id, k.circuit, k.bytes FROM keys k JOIN owners o ON o.digest = k.digest
                   WHERE o.client = ?1 ORDER BY k.digest";
        let database = self.database();
        let mut statement = database.prepare_cached(sql)?;
        Ok(statement.query_map(params![client], read_key)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Refuses early what [`add_key`](Self::add_key) would refuse: a key too many, or too large for the room that is left.
    ///
    /// # Errors
    /// [`ServeError::Busy`] or [`ServeError::Full`].
    pub fn admit_key(&self, client: &str, bytes: u64, quotas: &Quotas) -> Result<()> {
        let database = self.database();
        let count: usize = database
            .prepare_cached("SELECT count(*) FROM owners WHERE client = ?1")?
            .query_row(params![client], |row| row.get(0))?;
        if count >= quotas.client_keys {
            let keys = quotas.client_keys;
            return Err(ServeError::Busy(format!("you have {keys} server keys here, as many as you may: delete one")));
        }
        if used(&database)? + bytes > quotas.storage {
            return Err(full(quotas));
        }
        Ok(())
    }

    /// Keeps a key that was checked. One that is there already is not stored again.
    ///
    /// # Errors
    /// A quota is used up, or the disk failed.
    pub fn add_key(&self, client: &str, key: &KeyStatus, received: Received, quotas: &Quotas) -> Result<()> {
        if self.key(client, &key.digest).is_ok() {
            return Ok(());
        }
        self.admit_key(client, key.bytes, quotas)?;
        let mut database = self.database();
        let change = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "INSERT OR IGNORE INTO keys (digest, id, circuit, bytes) VALUES (?1, ?2, ?3, ?4)";
        let new = change.execute(sql, params![key.digest, key.id, key.circuit, key.bytes])?;
        if new == 1 {
            place(received, &self.key_path(&key.digest))?;
        }
        change.execute("INSERT OR IGNORE INTO owners VALUES (?1, ?2)", params![client, key.digest])?;
        Ok(change.commit()?)
    }

    /// Forgets a key of a client; its file goes with the last owner.
    ///
    /// # Errors
    /// The client has no such key, or an unfinished job that needs it.
    pub fn remove_key(&self, client: &str, digest: &str) -> Result<()> {
        self.key(client, digest)?;
        let mut database = self.database();
        let change = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "SELECT count(*) FROM jobs WHERE client = ?1 AND key = ?2 AND state IN ('queued', 'running')";
        let needed: usize = change.query_row(sql, params![client, digest], |row| row.get(0))?;
        if needed > 0 {
            return Err(ServeError::Conflict(format!("{needed} unfinished jobs need this key: cancel them first")));
        }
        change.execute("DELETE FROM owners WHERE client = ?1 AND digest = ?2", params![client, digest])?;
        let orphan = change.execute(
            "DELETE FROM keys WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM owners WHERE digest = ?1)",
            params![digest],
        )?;
        change.commit()?;
        if orphan == 1 {
            let _ = std::fs::remove_file(self.key_path(digest));
        }
        Ok(())
    }

    /// Refuses early what [`submit`](Self::submit) would refuse, so that nobody sends a body in vain. A job that is there is welcome.
    ///
    /// # Errors
    /// [`ServeError::Busy`] or [`ServeError::Full`].
    pub fn admit_job(&self, client: &str, id: &str, quotas: &Quotas) -> Result<()> {
        let database = self.database();
        let there = "SELECT 1 FROM jobs WHERE client = ?1 AND id = ?2";
        match database.prepare_cached(there)?.exists(params![client, id])? {
            true => Ok(()),
            false => room_for_job(&database, client, quotas),
        }
    }

    /// Queues a job, or finds it; and whether it is new.
    ///
    /// # Errors
    /// The id belongs to a job with another circuit, key or input; the queue is full; the disk failed.
    pub fn submit(&self, new: NewJob<'_>, quotas: &Quotas) -> Result<(Job, bool)> {
        let mut database = self.database();
        let change = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(job) = find_job(&change, new.client, new.id)? {
            let s = &job.status;
            let same = s.circuit == new.circuit && s.key == new.key && s.input == new.input.digest;
            return if same { Ok((job, false)) } else { Err(taken(new.id)) };
        }
        room_for_job(&change, new.client, quotas)?;
        let folder = thex_circuit::file::digest(format!("{}\0{}\0{}", new.client, new.id, now()).as_bytes());
        let bytes = new.input.bytes;
        let input = new.input.digest.clone();
        let made =
            std::fs::create_dir_all(self.job_folder(&folder)).and_then(|()| sync_folder(&self.root.join("jobs")));
        made.map_err(|e| disk("keep an input", &e))?;
        place(new.input, &self.job_folder(&folder).join("input.ct"))?;
        let sql = "INSERT INTO jobs (client, id, folder, circuit, key, input, input_bytes, state, pbs_total, created)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'queued', ?8, ?9)";
        let values = params![new.client, new.id, folder, new.circuit, new.key, input, bytes, new.pbs_total, now()];
        change.execute(sql, values)?;
        let job = find_job(&change, new.client, new.id)?;
        change.commit()?;
        job.map(|job| (job, true)).ok_or_else(|| ServeError::Internal("a job that was just stored is gone".into()))
    }

    /// A job of a client.
    ///
    /// # Errors
    /// [`ServeError::NotFound`].
    pub fn job(&self, client: &str, id: &str) -> Result<Job> {
        find_job(&self.database(), client, id)?.ok_or_else(|| {
            ServeError::NotFound("you have no job with this id; GET /v1/jobs lists those that you have".into())
        })
    }

    /// Jobs of a client, the newest first.
    ///
    /// # Errors
    /// The database failed.
    pub fn jobs(&self, client: &str, limit: usize) -> Result<Vec<Job>> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE client = ?1 ORDER BY serial DESC LIMIT ?2");
        let database = self.database();
        let mut statement = database.prepare_cached(&sql)?;
        Ok(statement.query_map(params![client, limit], Job::read)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Jobs that wait, the oldest first.
    ///
    /// # Errors
    /// The database failed.
    pub fn queued(&self) -> Result<Vec<Job>> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE state = 'queued' ORDER BY serial");
        let database = self.database();
        let mut statement = database.prepare(&sql)?;
        Ok(statement.query_map([], Job::read)?.collect::<rusqlite::Result<_>>()?)
    }

    /// Number of jobs in each state that occurs.
    ///
    /// # Errors
    /// The database failed.
    pub fn counts(&self) -> Result<Vec<(String, u64)>> {
        let database = self.database();
        let mut statement =
            database.prepare_cached("SELECT state, count(*) FROM jobs GROUP BY state ORDER BY state")?;
        Ok(statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?)
    }

    /// Notes that a queued job is started, and how often it was by now. `None` if it waits no longer.
    ///
    /// # Errors
    /// The database failed.
    pub fn start(&self, serial: i64) -> Result<Option<Job>> {
        let database = self.database();
        let sql = "UPDATE jobs SET state = 'running', starts = starts + 1, started = coalesce(started, ?2)
                   WHERE serial = ?1 AND state = 'queued'";
        if database.execute(sql, params![serial, now()])? == 0 {
            return Ok(None);
        }
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE serial = ?1");
        Ok(database.prepare_cached(&sql)?.query_row(params![serial], Job::read).optional()?)
    }

    /// Notes that a running job waits again.
    ///
    /// # Errors
    /// The database failed.
    pub fn requeue(&self, serial: i64) -> Result<()> {
        self.database()
            .execute("UPDATE jobs SET state = 'queued' WHERE serial = ?1 AND state = 'running'", params![serial])?;
        Ok(())
    }

    /// Notes how a job ended. A job that has ended keeps its first end.
    ///
    /// # Errors
    /// The database failed.
    pub fn finish(
        &self,
        serial: i64,
        state: JobState,
        result: Option<&ResultInfo>,
        error: Option<&ErrorBody>,
    ) -> Result<()> {
        let sql = "UPDATE jobs SET state = ?2, finished = ?3, result = ?4, result_bytes = ?5, code = ?6, message = ?7
                   WHERE serial = ?1 AND state IN ('queued', 'running')";
        let (digest, bytes) = result.map(|r| (&r.digest, r.bytes)).unzip();
        let (code, message) = error.map(|e| (&e.code, &e.message)).unzip();
        self.database().execute(sql, params![serial, state.name(), now(), digest, bytes, code, message])?;
        Ok(())
    }

    /// Forgets an ended job and its files.
    ///
    /// # Errors
    /// The client has no such job, or it has not ended.
    pub fn forget(&self, client: &str, id: &str) -> Result<()> {
        let job = self.job(client, id)?;
        let sql = "DELETE FROM jobs WHERE serial = ?1 AND state NOT IN ('queued', 'running')";
        if self.database().execute(sql, params![job.serial])? == 0 {
            return Err(ServeError::Conflict("this job has not ended: cancel it first".into()));
        }
        let _ = std::fs::remove_dir_all(self.job_folder(&job.folder));
        Ok(())
    }

    /// Forgets jobs that ended before a time; how many.
    ///
    /// # Errors
    /// The database failed.
    pub fn expire(&self, before: f64) -> Result<usize> {
        let sql = format!("SELECT {COLUMNS} FROM jobs WHERE finished < ?1 AND state NOT IN ('queued', 'running')");
        let old: Vec<Job> = {
            let database = self.database();
            let mut statement = database.prepare_cached(&sql)?;
            statement.query_map(params![before], Job::read)?.collect::<rusqlite::Result<_>>()?
        };
        for job in &old {
            self.forget(&job.client, &job.status.id)?;
        }
        Ok(old.len())
    }
}

fn taken(id: &str) -> ServeError {
    ServeError::Conflict(format!(
        "id `{id}` belongs to a job of yours with another circuit, key or input: choose another id"
    ))
}

fn read_key(row: &Row<'_>) -> rusqlite::Result<KeyStatus> {
    Ok(KeyStatus { digest: row.get(0)?, id: row.get(1)?, circuit: row.get(2)?, bytes: row.get(3)? })
}

fn find_job(database: &Connection, client: &str, id: &str) -> Result<Option<Job>> {
    let sql = format!("SELECT {COLUMNS} FROM jobs WHERE client = ?1 AND id = ?2");
    Ok(database.prepare_cached(&sql)?.query_row(params![client, id], Job::read).optional()?)
}

/// Bytes of keys, inputs and results.
fn used(database: &Connection) -> Result<u64> {
    let sql = "SELECT (SELECT coalesce(sum(bytes), 0) FROM keys) +
               (SELECT coalesce(sum(input_bytes), 0) + coalesce(sum(result_bytes), 0) FROM jobs)";
    Ok(database.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

fn room_for_job(database: &Connection, client: &str, quotas: &Quotas) -> Result<()> {
    let sql = "SELECT count(*), coalesce(sum(client = ?1), 0) FROM jobs WHERE state IN ('queued', 'running')";
    let (all, mine): (usize, usize) =
        database.prepare_cached(sql)?.query_row(params![client], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if mine >= quotas.client_jobs {
        let most = quotas.client_jobs;
        return Err(ServeError::Busy(format!(
            "you have {mine} unfinished jobs, of {most} that you may have: wait for one"
        )));
    }
    if all >= quotas.queue {
        return Err(ServeError::Busy(format!("the queue is full with {all} jobs: try again later")));
    }
    if used(database)? >= quotas.storage {
        return Err(full(quotas));
    }
    Ok(())
}

/// Gives a synced upload its name, durably.
fn place(received: Received, path: &Path) -> Result<()> {
    received.file.persist(path).map_err(|e| disk("keep an upload", &e.error))?;
    sync_folder(path.parent().unwrap_or(Path::new("."))).map_err(|e| disk("keep an upload", &e))
}

/// Makes names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const QUOTAS: Quotas = Quotas { queue: 4, client_jobs: 3, client_keys: 1, storage: 1000 };

    fn received(folder: &Path, content: &str) -> Received {
        let mut file = tempfile::NamedTempFile::new_in(folder).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        let digest = thex_circuit::file::digest(content.as_bytes());
        Received { file, digest, bytes: content.len() as u64 }
    }

    fn submit(store: &Store, client: &str, id: &str, content: &str) -> Result<(Job, bool)> {
        let input = received(&store.uploads(), content);
        store.submit(NewJob { client, id, circuit: "c", key: "k", input, pbs_total: 9 }, &QUOTAS)
    }

    #[test]
    fn one_id_is_one_job_of_its_client() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (job, new) = submit(&store, "alice", "1", "input").unwrap();
        assert!(new && job.status.state == JobState::Queued);
        let (again, new) = submit(&store, "alice", "1", "input").unwrap();
        assert!(!new && again.serial == job.serial);
        assert_eq!(submit(&store, "alice", "1", "other").unwrap_err().code(), "TX0607");
        assert!(submit(&store, "bob", "1", "other").unwrap().1);
        assert_eq!(store.job("carol", "1").unwrap_err().code(), "TX0601");
        assert_eq!(std::fs::read_to_string(store.job_file(&job, "input.ct")).unwrap(), "input");
    }

    #[test]
    fn quotas_are_each_clients_and_of_all() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        ["1", "2", "3"].iter().for_each(|id| assert!(submit(&store, "alice", id, id).unwrap().1));
        assert!(submit(&store, "alice", "4", "x").unwrap_err().to_string().contains("you have 3"));
        assert!(submit(&store, "bob", "1", "x").unwrap().1);
        assert!(submit(&store, "bob", "2", "x").unwrap_err().to_string().contains("queue is full"));
        // What is there is found even so, and an ended job makes room.
        assert!(store.admit_job("alice", "1", &QUOTAS).is_ok());
        store.finish(1, JobState::Cancelled, None, None).unwrap();
        assert!(submit(&store, "bob", "2", "x").unwrap().1);
        store.finish(2, JobState::Done, Some(&ResultInfo { digest: "r".into(), bytes: 2000 }), None).unwrap();
        assert_eq!(submit(&store, "bob", "3", "x").unwrap_err().code(), "TX0608");
        store.forget("alice", "2").unwrap();
        assert!(submit(&store, "bob", "3", "x").unwrap().1);
    }

    #[test]
    fn what_was_running_waits_again_and_remains_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let job = submit(&store, "alice", "1", "input").unwrap().0;
        assert_eq!(store.start(job.serial).unwrap().unwrap().status.starts, 1);
        assert!(store.start(job.serial).unwrap().is_none(), "a job that runs is not started twice");
        std::fs::write(store.uploads().join("upload-half"), "x").unwrap();
        std::fs::create_dir(store.job_folder("orphan")).unwrap();
        std::fs::write(store.key_path("orphan"), "x").unwrap();
        assert!(Store::open(folder.path()).err().unwrap().to_string().contains("another server"));
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.queued().unwrap().len(), 1);
        assert!(!store.job_folder("orphan").exists() && !store.key_path("orphan").exists());
        assert_eq!(std::fs::read_dir(store.uploads()).unwrap().count(), 0);
        assert!(store.job_file(&job, "input.ct").exists());
    }

    #[test]
    fn a_key_is_stored_once_and_goes_with_its_last_owner() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let key = KeyStatus { digest: "d".into(), id: "i".into(), circuit: "c".into(), bytes: 400 };
        for client in ["alice", "bob", "alice"] {
            store.add_key(client, &key, received(&store.uploads(), "key"), &QUOTAS).unwrap();
        }
        let other = KeyStatus { digest: "e".into(), ..key.clone() };
        let error = store.add_key("alice", &other, received(&store.uploads(), "other"), &QUOTAS).unwrap_err();
        assert_eq!(error.code(), "TX0606");
        let large = KeyStatus { bytes: 700, ..other };
        let error = store.add_key("carol", &large, received(&store.uploads(), "other"), &QUOTAS).unwrap_err();
        assert_eq!(error.code(), "TX0608");
        assert_eq!(store.keys("alice").unwrap(), std::slice::from_ref(&key));
        store.remove_key("alice", "d").unwrap();
        assert!(store.key("alice", "d").is_err() && store.key_path("d").exists());
        store.remove_key("bob", "d").unwrap();
        assert!(!store.key_path("d").exists());
    }
}
