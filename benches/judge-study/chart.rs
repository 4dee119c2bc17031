//! What came out, as a picture: how fast a rule finds bad canaries against how many good ones it rolls back.

use std::fmt::Write;

use super::{
    cases::{Case, Must},
    rules::Name,
    run::Did,
};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 520.0;
/// The field within the axes.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 560.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 450.0;
/// Where the logarithmic part of the axes ends: left of it is "none", above it "not within the hour".
const SOME: f64 = LEFT + 60.0;
const FOUND: f64 = TOP + 40.0;

const STYLE: &str = "\
    text{font:13px system-ui,sans-serif;fill:#1f2328}\
    .paper{fill:#fff}.line{stroke:#d1d9e0}.axis{stroke:#59636e}.allowed{fill:#1a7f37;opacity:.08}\
    .judge{fill:#1a7f37}.fixed{fill:#9a6700}.z{fill:#cf222e}.mw{fill:#8250df}\
    @media(prefers-color-scheme:dark){\
    text{fill:#f0f6fc}.paper{fill:#0d1117}.line{stroke:#3d444d}.axis{stroke:#9198a1}\
    .allowed{fill:#3fb950;opacity:.15}\
    .judge{fill:#3fb950}.fixed{fill:#d29922}.z{fill:#f85149}.mw{fill:#ab7df8}}";

/// All marks of one rule that stand in one place.
struct Mark {
    rule: Name,
    x: f64,
    y: f64,
    letters: String,
}

/// The chart, as SVG.
pub fn chart(results: &[(Case, Vec<Did>)]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Detection time against false rollbacks\">\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"
    );
    axes(&mut svg);
    let mut marks: Vec<Mark> = Vec::new();
    let mut row = 190.0;
    text(&mut svg, 590.0, row - 24.0, "start", "bad canaries:");
    let caught = results.iter().filter_map(|(case, did)| match case.must {
        Must::Catch { like, .. } => Some((case, did, like)),
        _ => None,
    });
    for ((case, did, like), letter) in caught.zip('a'..) {
        for (i, line) in lines(case.what).iter().enumerate() {
            let start = if i == 0 {
                format!("{letter}  {line}")
            } else {
                format!("    {line}")
            };
            text(&mut svg, 590.0, row, "start", &start);
            row += 18.0;
        }
        row += 4.0;
        let good = results.iter().find(|(case, _)| case.id == like);
        let Some((_, good)) = good else { continue };
        for did in did {
            let Some(good) = good.iter().find(|good| good.rule == did.rule) else {
                // Mann-Whitney is not asked where latency is not looked at.
                continue;
            };
            // Rolled back before anything was wrong: that is no detection.
            if did.median_seconds() == Some(0) {
                continue;
            }
            place(
                &mut marks,
                did.rule,
                x(good.share()),
                y(did.median_seconds()),
                letter,
            );
        }
    }
    for mark in &marks {
        let _ = writeln!(svg, "{}", shape(mark.rule, mark.x, mark.y));
        // The tests of every minute stand close together.
        let beside = match mark.rule {
            Name::ZTest => -8.0,
            Name::MannWhitney => 18.0,
            _ => 4.0,
        };
        text(
            &mut svg,
            mark.x + 8.0,
            mark.y + beside,
            "start",
            &mark.letters,
        );
    }
    for (rule, y) in Name::ALL.into_iter().zip([60.0, 82.0, 104.0, 126.0]) {
        let _ = writeln!(svg, "{}", shape(rule, 596.0, y - 4.0));
        text(&mut svg, 612.0, y, "start", rule.label());
    }
    svg + "</svg>\n"
}

fn axes(svg: &mut String) {
    let allowed = x(0.01) - LEFT;
    let height = BOTTOM - TOP;
    let _ = writeln!(
        svg,
        "<rect class=\"allowed\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{allowed:.1}\" height=\"{height}\"/>"
    );
    for (share, label) in [
        (0.0, "none"),
        (0.001, "0.1 %"),
        (0.01, "1 %"),
        (0.1, "10 %"),
        (1.0, "100 %"),
    ] {
        line(svg, "line", [x(share), TOP, x(share), BOTTOM]);
        text(svg, x(share), BOTTOM + 20.0, "middle", label);
    }
    for (seconds, label) in [
        (Some(1), "1 s"),
        (Some(10), "10 s"),
        (Some(60), "1 min"),
        (Some(600), "10 min"),
        (Some(3600), "1 h"),
        (None, "not found"),
    ] {
        line(svg, "line", [LEFT, y(seconds), RIGHT, y(seconds)]);
        text(svg, LEFT - 8.0, y(seconds) + 4.0, "end", label);
    }
    line(svg, "axis", [LEFT, BOTTOM, RIGHT, BOTTOM]);
    line(svg, "axis", [LEFT, TOP, LEFT, BOTTOM]);
    let middle = (LEFT + RIGHT) / 2.0;
    text(
        svg,
        middle,
        BOTTOM + 48.0,
        "middle",
        "rollouts of a canary as good as main that are rolled back",
    );
    text(
        svg,
        LEFT - 70.0,
        TOP - 16.0,
        "start",
        "median time until a bad canary is rolled back",
    );
}

fn x(share: f64) -> f64 {
    match share > 0.0 {
        true => SOME + (RIGHT - 20.0 - SOME) * (share.max(0.0005) / 0.0005).ln() / 2000f64.ln(),
        false => LEFT + 20.0,
    }
}

fn y(seconds: Option<u32>) -> f64 {
    match seconds {
        Some(seconds) => {
            BOTTOM - 10.0 - (BOTTOM - 10.0 - FOUND) * f64::from(seconds.max(1)).ln() / 3600f64.ln()
        }
        None => TOP + 10.0,
    }
}

fn place(marks: &mut Vec<Mark>, rule: Name, x: f64, y: f64, letter: char) {
    let near = |mark: &&mut Mark| {
        mark.rule == rule && (mark.x - x).abs() < 8.0 && (mark.y - y).abs() < 10.0
    };
    match marks.iter_mut().find(near) {
        Some(mark) => {
            mark.letters.push(' ');
            mark.letters.push(letter);
        }
        None => marks.push(Mark {
            rule,
            x,
            y,
            letters: letter.into(),
        }),
    }
}

/// A shape of its own as well as a colour.
fn shape(rule: Name, x: f64, y: f64) -> String {
    let polygon = |class: &str, points: &[(f64, f64)]| {
        let points: Vec<String> = points
            .iter()
            .map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy))
            .collect();
        format!(
            "<polygon class=\"{class}\" points=\"{}\"/>",
            points.join(" ")
        )
    };
    match rule {
        Name::Judge => format!("<circle class=\"judge\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"6\"/>"),
        Name::Fixed => polygon(
            "fixed",
            &[(-5.5, -5.5), (5.5, -5.5), (5.5, 5.5), (-5.5, 5.5)],
        ),
        Name::ZTest => polygon("z", &[(0.0, -7.0), (6.5, 5.0), (-6.5, 5.0)]),
        Name::MannWhitney => polygon("mw", &[(0.0, -7.0), (7.0, 0.0), (0.0, 7.0), (-7.0, 0.0)]),
    }
}

fn line(svg: &mut String, class: &str, [x1, y1, x2, y2]: [f64; 4]) {
    let _ = writeln!(
        svg,
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" xml:space=\"preserve\">{text}</text>"
    );
}

/// Broken where it would leave the picture.
fn lines(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].chars().count() + word.chars().count() > 38 {
            lines.push(word.into());
        } else {
            if !lines[last].is_empty() {
                lines[last].push(' ');
            }
            lines[last] += word;
        }
    }
    lines
}
