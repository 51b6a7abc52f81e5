//! Figures for people, and the table of what was to be reached beside what was.

/// A whole number with a comma at every thousand.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A figure with few digits.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2} M", value / 1e6),
        size if size >= 100.0 => grouped(value),
        _ => format!("{value:.2}"),
    }
}

/// One line of the table at the end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Goal {
    pub(crate) what: &'static str,
    wanted: String,
    /// None where the rows that it takes aren't there.
    pub(crate) found: Option<(String, bool)>,
}

impl Goal {
    pub(crate) fn at_least(what: &'static str, wanted: f64, unit: &str, found: Option<f64>) -> Self {
        Self::of(what, wanted, unit, found, |found| found >= wanted)
    }

    pub(crate) fn at_most(what: &'static str, wanted: f64, unit: &str, found: Option<f64>) -> Self {
        Self::of(what, wanted, unit, found, |found| found <= wanted)
    }

    fn of(what: &'static str, wanted: f64, unit: &str, found: Option<f64>, reached: impl Fn(f64) -> bool) -> Self {
        let show = |value: f64| format!("{}{unit}", short(value));
        Self { what, wanted: show(wanted), found: found.map(|found| (show(found), reached(found))) }
    }
}

/// Prints those of which anything was measured. False where there are none.
pub(crate) fn print(goals: &[Goal]) -> bool {
    let found: Vec<_> = goals.iter().filter_map(|goal| Some((goal, goal.found.as_ref()?))).collect();
    if found.is_empty() {
        return false;
    }
    println!("\n{:<68} {:>16} {:>16}", "goal", "wanted", "found");
    for (goal, (found, reached)) in &found {
        let verdict = if *reached { "reached" } else { "not reached" };
        println!("{:<68} {:>16} {found:>16}  {verdict}", goal.what, goal.wanted);
    }
    true
}

/// What is said of the figures that they are, for tests.
#[cfg(test)]
pub(crate) fn found(goals: &[Goal]) -> Vec<(&'static str, String, bool)> {
    let told = |goal: &Goal| goal.found.clone().map(|(found, reached)| (goal.what, found, reached));
    goals.iter().filter_map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (value, text) in [(0.0, "0"), (999.4, "999"), (1_000.0, "1,000"), (12_345_678.0, "12,345,678")] {
            assert_eq!(grouped(value), text);
        }
    }
}
