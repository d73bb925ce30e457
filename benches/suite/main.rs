//! How long builds take, beside peers and beside the floor: a program that does only what nobody can
//! leave out of the same job (read the files, hash them, compress them).
//!
//! ```text
//! make bench                                  every row, seven rounds
//! cargo bench --bench suite -- ROW… [--rounds N] [--cheap] [--check]
//! ```
//!
//! ROW is a part of a row's name; `--cheap` leaves out what takes more than a few seconds; `--check`
//! leaves out the peers and fails where even the fastest round of a row is three times slower than its target, on
//! a machine as fast as the one that the targets were set on, or takes too much memory. Everything is in
//! `target/bench/`: the table (`table.md`), the plot (`plot.svg`), and the stores while it runs.
//!
//! All that play in a row take turns in every round, so that a busy moment of the machine meets
//! each of them.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

mod fixture;
mod floor;
mod player;
mod plot;
mod report;
mod row;
mod sample;

use std::process::ExitCode;

use fixture::Fixture;
use report::Report;
use sample::Sample;

pub type Result<T, E = String> = std::result::Result<T, E>;

struct Options {
    wanted: Vec<String>,
    rounds: usize,
    is_cheap: bool,
    is_check: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.split_first() {
        // What this program does as a process of its own, so that it is measured as the others are.
        Some((first, rest)) if first == "floor" => floor::main(rest).map(|()| true),
        _ => options(&arguments).and_then(run),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn options(arguments: &[String]) -> Result<Options> {
    let mut options = Options { wanted: Vec::new(), rounds: 7, is_cheap: false, is_check: false };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // Cargo's.
            "--bench" => {}
            "--cheap" => options.is_cheap = true,
            "--check" => options.is_check = true,
            "--rounds" => {
                let rounds = arguments.next().and_then(|count| count.parse().ok()).filter(|count| *count > 0);
                options.rounds = rounds.ok_or("--rounds takes a number")?;
            }
            flag if flag.starts_with('-') => return Err(format!("unknown flag {flag}")),
            row => options.wanted.push(row.to_owned()),
        }
    }
    Ok(options)
}

/// Whether every row is within what `--check` allows.
fn run(options: Options) -> Result<bool> {
    let rows: Vec<_> = row::ROWS
        .iter()
        .filter(|row| !options.is_cheap || row.is_cheap)
        .filter(|row| options.wanted.is_empty() || options.wanted.iter().any(|part| row.name.contains(part)))
        .collect();
    if rows.is_empty() {
        return Err("no row has such a name".into());
    }
    let fixture = Fixture::new()?;
    let mut report = Report::new(options.rounds, player::versions());
    for row in rows {
        eprintln!("{}", row.name);
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); row.players.len()];
        let mut notes = vec![None; row.players.len()];
        // The round before the first fills caches and is not counted.
        for round in 0..=options.rounds {
            for (index, player) in row.players.iter().enumerate() {
                if notes[index].is_some() || (options.is_check && player.is_peer()) {
                    continue;
                }
                match player::missing(*player).map_or_else(|| (row.once)(&fixture, *player, round), Err) {
                    Ok(_) if round == 0 => {}
                    Ok(sample) => samples[index].push(sample),
                    Err(why) if *player == player::Player::Wythe => return Err(format!("{}: {why}", row.name)),
                    Err(why) => notes[index] = Some(why),
                }
            }
        }
        report.add(row, &samples, &notes);
        fixture.forget();
    }
    let table = report.table();
    print!("{table}");
    fixture.write("table.md", &table)?;
    fixture.write("plot.svg", &plot::svg(&report))?;
    println!("written to target/bench: table.md, plot.svg");
    Ok(!options.is_check || report.is_within_check(pace(&fixture, options.rounds)?))
}

/// The median time of a fixed piece of work.
fn pace(fixture: &Fixture, rounds: usize) -> Result<std::time::Duration> {
    let file = fixture.base().join("index.json");
    let samples: Result<Vec<_>> = (0..rounds).map(|_| Sample::of(&mut player::floor("pace", &file))).collect();
    Ok(Sample::median(&samples?).unwrap_or_default().wall)
}
