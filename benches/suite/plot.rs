//! The plot: a group of bars for each row, on a logarithmic scale of time.

use std::fmt::Write as _;
use std::time::Duration;

use crate::player::Player;
use crate::report::{Report, show};

const LEFT: f64 = 290.0;
const WIDTH: f64 = 560.0;
const BAR: f64 = 13.0;
const GAP: f64 = 12.0;
const TOP: f64 = 40.0;
const RIGHT: f64 = 90.0;

/// Colours that differ for eyes that see no red and green apart, too.
const COLOURS: [(Player, &str); 5] = [
    (Player::Wythe, "#0072b2"),
    (Player::User, "#009e73"),
    (Player::Floor, "#999999"),
    (Player::Buildah, "#e69f00"),
    (Player::Runc, "#cc79a7"),
];

/// The report as a drawing of its own.
pub fn svg(report: &Report) -> String {
    let times: Vec<f64> = report
        .lines
        .iter()
        .flat_map(|line| line.results.iter().map(|(_, sample)| sample.wall.as_secs_f64().max(1e-6)))
        .collect();
    let decade = |time: f64| time.log10();
    let first = times.iter().copied().map(decade).fold(f64::INFINITY, f64::min).floor();
    let last = times.iter().copied().map(decade).fold(f64::NEG_INFINITY, f64::max).ceil().max(first + 1.0);
    let x = |time: f64| LEFT + (decade(time.max(1e-6)) - first) / (last - first) * WIDTH;

    let bars: usize = report.lines.iter().map(|line| line.results.len()).sum();
    let bottom = TOP + bars as f64 * BAR + report.lines.len() as f64 * GAP;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        LEFT + WIDTH + RIGHT,
        bottom + 30.0
    );
    let mut at = LEFT;
    for (player, colour) in COLOURS {
        let _ = writeln!(text, "<rect x=\"{at}\" y=\"12\" width=\"10\" height=\"10\" fill=\"{colour}\"/>");
        let _ = writeln!(text, "<text x=\"{}\" y=\"21\">{}</text>", at + 14.0, player.name());
        at += 80.0;
    }
    let mut mark = first;
    while mark <= last {
        let at = x(10_f64.powf(mark));
        let _ = writeln!(text, "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#dddddd\"/>");
        let label = show(Duration::from_secs_f64(10_f64.powf(mark)));
        let _ = writeln!(text, "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", bottom + 16.0);
        mark += 1.0;
    }
    let mut y = TOP + GAP / 2.0;
    for line in &report.lines {
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            y + BAR - 3.0,
            line.name
        );
        let begun = y;
        for (player, colour) in COLOURS {
            let Some(sample) = line.of(player) else { continue };
            let end = x(sample.wall.as_secs_f64());
            let _ = writeln!(
                text,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                (end - LEFT).max(1.0),
                BAR - 2.0
            );
            let _ =
                writeln!(text, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", end + 4.0, y + BAR - 3.0, show(sample.wall));
            y += BAR;
        }
        if let Some(target) = line.target {
            let at = x(target.as_secs_f64());
            let _ = writeln!(
                text,
                "<line x1=\"{at:.1}\" y1=\"{begun:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#d55e00\" stroke-width=\"2\"/>",
                begun + BAR - 2.0
            );
        }
        y += GAP;
    }
    text.push_str("</svg>\n");
    text
}
