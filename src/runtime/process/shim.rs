//! The small program between the agent and a session's command: `ostler shim <directory>`.
//!
//! It belongs to no agent. It owns the command's output, outlives whoever started it, takes in
//! every process that the command leaves behind, and ends only when none is left, with the exit
//! status on disk. What it is to do it reads from the session's directory, never from its
//! arguments, which anybody may see.
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
use crate::clock::Clock;

/// As shells count: the command was not found, could not be executed, or the shim could not get that far.
const NOT_FOUND: i64 = 127;
const NOT_EXECUTABLE: i64 = 126;
const SHIM_FAILED: i64 = 125;

/// How much output is taken from the pipe at once: as much as a pipe holds.
const CHUNK: usize = 64 << 10;
/// How long output is waited for once no process of the session is left. It is in the pipe already;
/// only a copy of the pipe that was passed out of the session keeps it open.
const DRAIN: Duration = Duration::from_secs(1);
/// Open files that a program may have, and may raise that to. More than 1024 breaks programs that use `select`.
const OPEN_FILES: u64 = 1024;
const OPEN_FILES_MAX: u64 = 524_288;

/// Runs the session of a directory to its end. The agent holds the session's lock as this program's
/// standard input, so that there is never a second one.
pub fn main(directory: &Path) -> ExitCode {
    let directory = SessionDirectory::at(directory.to_owned());
    match detach().and_then(|()| Shim::new(&directory)).and_then(|shim| shim.run()) {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody listens. The agent sees that there is no ending and says so.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Leaves the agent's terminal and process group, and takes in orphans.
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

/// How the command came to its end, before the rest of the session does.
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
        let oom_killed = done.code != 0 && plan.group.oom_kills() > 0;
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
                // The disk may be full as well; the ending says it once more.
                let _ = log.write(format!("ostler: {message}\n").as_bytes());
                let code = if e.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
                return Ok(Done { code, never_ran: Some(message) });
            }
        };
        let (copied, all_copied) = mpsc::channel::<()>();
        std::thread::Builder::new().spawn(move || copy(output, log, copied))?;
        // A command that has already ended has a state too: the agent waits for it.
        let boot_id = self.clock.now().boot_id;
        self.directory.write_state(&State { boot_id, shim: self.me, command })?;
        let code = wait_for(command.pid)?;
        end_everything(&plan.group);
        // It answers, by an error, when the copying thread drops its end.
        let _ = all_copied.recv_timeout(DRAIN);
        Ok(Done { code, never_ran: None })
    }

    /// Starts the command, born in its group. The outer error is the shim's, the inner the command's own.
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

/// Limits that every process of the session inherits, and cannot raise.
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

/// Copies output to the log until nobody can write any more. A full disk loses output and stops nobody.
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

/// Waits for one child, and for every orphan that ends meanwhile. Answers the status as a shell counts.
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

/// Kills whatever the command left behind and returns once the last of it is gone. Orphans come to
/// this process, so that having no child means that there is none.
fn end_everything(group: &Group) {
    let me = getpid().as_raw_pid();
    loop {
        processes::kill_all(|| {
            let mut members = processes::descendants(&processes::all(), me);
            members.extend(group.members().into_iter().filter(|process| process.pid != me));
            members
        });
        // A frozen process dies when it is let go.
        let _ = group.freeze(false);
        if matches!(wait(WaitOptions::empty()), Err(rustix::io::Errno::CHILD)) {
            return;
        }
        while matches!(wait(WaitOptions::NOHANG), Ok(Some::<(Pid, _)>(_))) {}
    }
}
