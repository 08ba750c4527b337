//! The small program between the agent and a session's command: `ostler shim <directory>`.
//!
//! It is independent of the agent: it owns the command's output, outlives the agent that started it, and adopts
//! every process that the command leaves behind. It ends when none is left, with the exit status on
//! disk. It reads its task from the session's directory, not from its arguments, which every user of
//! the host can see.
//!
//! One thread waits for processes and one copies the output; both sleep until the kernel wakes them.

use std::io::{self, PipeReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, WaitOptions, getpid, getrlimit, setrlimit, wait};

use super::account::Account;
use super::cgroup::Group;
use super::directory::{self, Ending, Identity, Plan, SessionDirectory, State};
use super::environment;
use super::log::{self, BoundedLog};
use super::processes::{self, Process};
use super::session;
use crate::clock::Clock;

/// The exit code of a shim that failed before it tried the command.
const SHIM_FAILED: i64 = 125;

/// Bytes of output that are read from the pipe at once: as much as a pipe holds.
const CHUNK: usize = 64 << 10;
/// How long the shim waits for the rest of the output once no process of the session is left. The output is in the
/// pipe already; the pipe stays open only if a process outside the session has a copy of it.
const DRAIN: Duration = Duration::from_secs(1);
/// The soft and the hard limit of open files. A soft limit above 1024 breaks programs that use `select`.
const OPEN_FILES: u64 = 1024;
const OPEN_FILES_MAX: u64 = 524_288;

/// Runs the session of a directory to its end. The agent passes the session's lock as this program's
/// standard input, so that there is never a second shim.
pub fn main(directory: &Path) -> ExitCode {
    let directory = SessionDirectory::at(directory.to_owned());
    match detach().and_then(|()| Shim::new(&directory)).and_then(|shim| shim.run()) {
        Ok(()) => ExitCode::SUCCESS,
        // No process reads an error here. The agent sees that there is no ending and reports that.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Leaves the agent's terminal and process group, and makes this process adopt orphans.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::set_child_subreaper(Some(getpid()))?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(())
}

struct Shim<'a> {
    directory: &'a SessionDirectory,
    clock: Clock,
    me: Process,
}

/// How the command ended; other processes of the session may still run.
struct Done {
    code: i64,
    never_ran: Option<String>,
}

impl<'a> Shim<'a> {
    fn new(directory: &'a SessionDirectory) -> io::Result<Self> {
        let me = Process::of_pid(getpid().as_raw_pid()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { directory, clock: Clock::system()?, me })
    }

    fn run(&self) -> io::Result<()> {
        let plan = self.directory.plan()?.ok_or(io::ErrorKind::NotFound)?;
        let done = self.supervise(&plan).unwrap_or_else(|e| Done { code: SHIM_FAILED, never_ran: Some(e.to_string()) });
        end_everything(&plan.group);
        let oom_killed = plan.group.oom_kills() > 0;
        plan.group.remove();
        let now = self.clock.now();
        self.directory.write_ending(&Ending {
            run: directory::run(now.boot_id, &self.me),
            code: done.code,
            oom_killed,
            finished_at: Some(now.wall),
            never_ran: done.never_ran,
        })
    }

    /// Runs the command until its main process ends.
    fn supervise(&self, plan: &Plan) -> io::Result<Done> {
        let identity = self.directory.identity()?.ok_or(io::ErrorKind::NotFound)?;
        let mut log = BoundedLog::open(self.directory.path(), log::FILE_BYTES)?;
        limit(plan.address_space_bytes)?;
        std::env::set_current_dir(self.directory.work())?;
        let (command, output) = match self.spawn(&identity, plan)? {
            Ok(spawned) => spawned,
            Err(e) => {
                let program = identity.launch.command.first().map_or("", String::as_str);
                let message = format!("cannot run `{program}`: {e}");
                // The write may fail, for example on a full disk; the ending has the message too.
                let _ = log.write(format!("ostler: {message}\n").as_bytes());
                let not_found = e.kind() == io::ErrorKind::NotFound;
                let code = if not_found { session::NOT_FOUND } else { session::NOT_EXECUTABLE };
                return Ok(Done { code, never_ran: Some(message) });
            }
        };
        let (copied, all_copied) = mpsc::channel::<()>();
        std::thread::Builder::new().spawn(move || copy(output, log, copied))?;
        // Written even if the command has already ended: the agent waits for the state.
        let boot_id = self.clock.now().boot_id;
        self.directory.write_state(&State { boot_id, shim: self.me, command })?;
        let code = wait_for(command.pid)?;
        end_everything(&plan.group);
        // Returns with an error when the copying thread ends and drops its sender.
        let _ = all_copied.recv_timeout(DRAIN);
        Ok(Done { code, never_ran: None })
    }

    /// Starts the command inside its group. The outer error is the shim's, the inner one the command's.
    fn spawn(&self, identity: &Identity, plan: &Plan) -> io::Result<io::Result<(Process, PipeReader)>> {
        let (reader, writer) = io::pipe()?;
        let mut command = self.command(identity, plan, writer)?;
        plan.group.enter()?;
        let spawned = command.spawn();
        plan.group.leave()?;
        Ok(spawned.map(|child| (Process::of_child(child.id()), reader)))
    }

    fn command(&self, identity: &Identity, plan: &Plan, output: io::PipeWriter) -> io::Result<Command> {
        let words = &identity.launch.command;
        let program = words.first().ok_or(io::ErrorKind::InvalidInput)?;
        let account = plan.account.as_ref();
        let user = account.map_or_else(|| Account::name_of(rustix::process::getuid().as_raw()), |a| a.name.clone());
        let mut command = Command::new(program);
        command
            .args(&words[1..])
            .env_clear()
            .envs(environment::of_command(identity, plan, &user, &self.directory.work()))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        if let Some(account) = account {
            // The standard library drops root's supplementary groups with it.
            command.uid(account.uid).gid(account.gid);
        }
        Ok(command)
    }
}

/// Sets limits that every process of the session inherits and cannot raise.
fn limit(address_space: Option<u64>) -> io::Result<()> {
    let lower = |resource, current: u64, maximum: u64| {
        let maximum = getrlimit(resource).maximum.map_or(maximum, |now| now.min(maximum));
        setrlimit(resource, Rlimit { current: Some(current.min(maximum)), maximum: Some(maximum) })
    };
    // A core dump would hold the session's secrets.
    lower(Resource::Core, 0, 0)?;
    lower(Resource::Nofile, OPEN_FILES, OPEN_FILES_MAX)?;
    if let Some(bytes) = address_space {
        lower(Resource::As, bytes, bytes)?;
    }
    Ok(())
}

/// Copies output to the log until the last writer closes the pipe. On a full disk output is lost, and the session
/// goes on.
fn copy(mut output: PipeReader, mut log: BoundedLog, _copied: mpsc::Sender<()>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match output.read(&mut chunk) {
            Ok(0) => return,
            Ok(length) => drop(log.write(&chunk[..length])),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Waits for one child, and for every orphan that ends meanwhile. Returns the exit code as shells count.
fn wait_for(pid: i32) -> io::Result<i64> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((ended, status))) if ended.as_raw_pid() == pid => {
                let status = ExitStatus::from_raw(status.as_raw());
                return Ok(status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(-1).into());
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Kills every process that the command left behind and returns once the last is gone. This process adopts
/// orphans, so no process is left once it has no child.
fn end_everything(group: &Group) {
    let me = getpid().as_raw_pid();
    loop {
        processes::kill_all(|| {
            let mut members = processes::descendants(&processes::all(), me);
            members.extend(group.members().into_iter().filter(|process| process.pid != me));
            members
        });
        // A frozen process handles the signal once it is resumed.
        let _ = group.freeze(false);
        if matches!(wait(WaitOptions::empty()), Err(rustix::io::Errno::CHILD)) {
            return;
        }
        while matches!(wait(WaitOptions::NOHANG), Ok(Some::<(Pid, _)>(_))) {}
    }
}
