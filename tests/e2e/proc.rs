//! `uvs proc` of a director that has work: it says what `ipvsadm` says.

use crate::director::{LIMIT, V4, V6, World, in_default_world, load, uvs};
use crate::harness::{Outcome, Tests, check};
use crate::traffic::run;
use libtest_mimic::Failed;
use uvs_lab::wait;

pub(crate) const TESTS: Tests = &[("files_show_what_the_director_did", || in_default_world(files))];

fn file(world: &World, name: &str) -> Result<String, Failed> {
    let output = uvs(&world.topology.director, ["proc", name])?;
    check(output.status.success(), String::from_utf8_lossy(&output.stderr))?;
    Ok(String::from_utf8(output.stdout)?)
}

/// The hexadecimal numbers of a line.
fn numbers(line: &str) -> Vec<u64> {
    line.split_whitespace().filter_map(|word| u64::from_str_radix(word, 16).ok()).collect()
}

fn files(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        world.balance(family, "rr", &[1, 3])?;
        run(world, &load(world.service(family), 40, false))?;
    }
    let services = file(world, "ip_vs")?;
    check(services.lines().filter(|line| line.contains("Masq    3 ")).count() == 2, &services)?;
    for name in ["ip_vs_conn", "ip_vs_conn_sync"] {
        let connections = file(world, name)?;
        check(connections.lines().count() == 81, format!("{name}: {connections}"))?;
    }
    let sums = file(world, "ip_vs_stats")?;
    let counted = sums.lines().nth(2).map(numbers).unwrap_or_default();
    check(counted.len() == 5 && counted[0] == 80 && counted.iter().all(|sum| *sum > 0), &sums)?;
    // The first estimate is a quarter of what came in its two seconds.
    wait::until("the rates to be estimated", LIMIT, || {
        let rates = file(world, "ip_vs_stats").unwrap_or_default();
        rates.lines().nth(5).map(numbers).unwrap_or_default().first().is_some_and(|rate| *rate > 0)
    })?;
    world.ipvsadm("-Z")?;
    let zeroed = file(world, "ip_vs_stats_percpu")?;
    let rows: Vec<_> = zeroed.lines().collect();
    check(numbers(rows[2]).get(1) == Some(&80), &zeroed)?;
    check(numbers(rows[3]) == [0; 5], zeroed)
}
