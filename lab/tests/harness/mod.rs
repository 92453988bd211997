//! Running the tests: what they are, whether they can run here, and cleaning up whatever happens.

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use std::cell::RefCell;
use std::process::ExitCode;
use uvs_lab::{Topology, cleanup};

/// What a test returns: any error becomes its failure.
pub(crate) type Outcome = Result<(), Failed>;

/// Tests of one file: name and function.
pub(crate) type Tests = &'static [(&'static str, fn() -> Outcome)];

/// A test made of a table's row.
pub(crate) type Test = Box<dyn FnOnce() -> Outcome + Send>;

thread_local! {
    /// Why the test that runs on this thread cannot.
    static IGNORED: RefCell<Option<&'static str>> = const { RefCell::new(None) };
}

/// Has the calling test reported as ignored, for a reason that begins with "because".
#[allow(dead_code, reason = "not every file of tests that has this harness has such a test")]
pub(crate) fn ignore(reason: &'static str) -> Outcome {
    IGNORED.set(Some(reason));
    Ok(())
}

/// Runs the tests that the command line selects, of `files` and, by their whole names, of `tables`, at most two at once: each
/// builds a topology and loads it, and more would only measure each other.
pub(crate) fn run(files: &[(&str, Tests)], tables: Vec<(String, Test)>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(2).min(2));
    if !arguments.list {
        cleanup::remove_stale();
        if let Err(error) = cleanup::end_on_signals("interrupted; the tests' namespaces are removed") {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    let obstacle =
        if arguments.list { None } else { uvs_lab::obstacle().map(|why| format!("because {why}")) };
    let of_files = files.iter().flat_map(|(file, tests)| {
        tests.iter().map(move |(name, test)| (format!("{file}::{name}"), Box::new(*test) as Test))
    });
    let trials = of_files
        .chain(tables)
        .map(|(name, test)| {
            let obstacle = obstacle.clone();
            Trial::ignorable_test(name, move || match obstacle {
                Some(reason) => Ok(Completion::ignored_with(reason)),
                None => test().map(|()| match IGNORED.take() {
                    Some(reason) => Completion::ignored_with(reason),
                    None => Completion::Completed,
                }),
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if std::env::var_os("CI").is_some() && conclusion.num_ignored > 0 {
        eprintln!("{} tests could not run, and CI is set: that is a failure", conclusion.num_ignored);
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// A check: the test fails with `message` unless `condition` holds.
#[track_caller]
pub(crate) fn check(condition: bool, message: impl std::fmt::Display) -> Outcome {
    if condition {
        return Ok(());
    }
    let place = std::panic::Location::caller();
    Err(format!("{}:{}: {message}", place.file(), place.line()).into())
}

/// The default topology, for tests that need nothing special.
pub(crate) fn topology() -> Result<Topology, Failed> {
    Ok(Topology::build(&uvs_lab::Plan::default())?)
}
