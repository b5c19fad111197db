//! Which of the known names a misspelt one may have been meant to be.

use std::collections::VecDeque;

/// Of known names, each in the form of [`plain`] and as it is to be shown, the one that is only a slip or two away from
/// this one.
pub fn nearest(given: &str, known: impl Iterator<Item = (String, String)>) -> Option<String> {
    known
        .filter_map(|(known, shown)| {
            let slips = slips(given.len().min(known.len()));
            // Each letter more is a slip of its own.
            let is_near = given.chars().count().abs_diff(known.chars().count()) <= slips;
            let distance = is_near.then(|| distance(given, &known))?;
            (distance <= slips).then_some((distance, shown))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, shown)| shown)
}

/// A name without what is easily got wrong: capitals, and what stands between the words.
pub fn plain(name: &str) -> String {
    name.to_uppercase().replace(['_', '-', '.'], "")
}

/// How many slips of the finger a name of this length may have to be taken for another.
fn slips(length: usize) -> usize {
    match length {
        0..=1 => 0,
        2..=5 => 1,
        _ => 2,
    }
}

/// How many slips of the finger turn one text into the other: a letter too many, one too few, a wrong one, two neighbours swapped
/// (optimal string alignment).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let row: Vec<usize> = (0..=other.len()).collect();
    // The last two rows of the table, and the letter before.
    let mut rows = VecDeque::from([row.clone(), row]);
    let mut before = None;
    for (place, letter) in one.chars().enumerate() {
        let (last_but_one, last) = (&rows[0], &rows[1]);
        let mut row = vec![place + 1];
        for column in 0..other.len() {
            let wrong = usize::from(letter != other[column]);
            let mut least = (last[column] + wrong)
                .min(last[column + 1] + 1)
                .min(row[column] + 1);
            if column > 0 && before == Some(other[column]) && letter == other[column - 1] {
                least = least.min(last_but_one[column - 1] + 1);
            }
            row.push(least);
        }
        rows.push_back(row);
        rows.pop_front();
        before = Some(letter);
    }
    rows[1][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_counts_slips_of_the_finger() {
        for (one, other, count) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("wait", "wait", 0),
            ("wiat", "wait", 1),
            ("wit", "wait", 1),
            ("waait", "wait", 1),
            ("want", "wait", 1),
            ("tiaw", "wait", 3),
            ("abcdef", "badcfe", 3),
            ("ca", "abc", 3),
        ] {
            assert_eq!(distance(one, other), count, "{one} {other}");
            assert_eq!(distance(other, one), count, "{other} {one}");
        }
    }
}
