//! Text of users, servers and hosts, made fit to be shown: nothing in it that a terminal would obey or that the eye would
//! miss, and not without end.

use std::io;

/// Stands in the place of a character that is not shown.
const HIDDEN: char = '?';
/// Stands where the rest was cut off.
const CUT: &str = "...";

/// One line of at most so many bytes. libpq reports several attempts on several lines: they are joined.
pub fn line(text: &str, most: usize) -> String {
    let lines = text.lines().enumerate();
    fit(
        lines.flat_map(|(place, line)| {
            let space = (place > 0).then_some(' ');
            space.into_iter().chain(line.trim().chars())
        }),
        most,
    )
}

/// The text itself, of at most so many bytes; a line break is one more character that is not shown.
pub fn field(text: &str, most: usize) -> String {
    fit(text.chars(), most)
}

/// An error of the system's in its words alone: the number that the library adds says nothing to most.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => text.replace(&format!(" (os error {number})"), ""),
        None => text,
    }
}

/// Takes no more of the characters than there is room for: a server may send a line of gigabytes.
fn fit(characters: impl Iterator<Item = char>, most: usize) -> String {
    let mut text = String::new();
    for c in characters {
        text.push(if is_printable(c) { c } else { HIDDEN });
        if text.len() > most {
            while text.len() + CUT.len() > most && text.pop().is_some() {}
            text.push_str(CUT);
            break;
        }
    }
    text
}

/// Whether a character may be shown: whether it is neither for control (Cc), nor for the format of other text (Cf), nor a
/// separator of lines (Zl, Zp), nor without a meaning that all agree on (Co, Cn). What `Debug` escapes in the middle of a text is
/// that, with quotes, backslashes, and spaces that are no ASCII.
fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // For a variant of the letter before, and for tags: whole messages fit into them, and are not seen.
        '\u{e0000}'..='\u{e0fff}' => false,
        '\u{85}' | '\u{2028}' | '\u{2029}' => false,
        c if c.is_whitespace() && !c.is_ascii() => true,
        c => ['x', c].iter().collect::<String>().escape_debug().count() == 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The categories Cc, Cf, Zl and Zp of Unicode 16.0, from its `DerivedGeneralCategory.txt`.
    const UNSEEN: [(u32, u32); 25] = [
        (0x0000, 0x001f),
        (0x007f, 0x009f),
        (0x00ad, 0x00ad),
        (0x0600, 0x0605),
        (0x061c, 0x061c),
        (0x06dd, 0x06dd),
        (0x070f, 0x070f),
        (0x0890, 0x0891),
        (0x08e2, 0x08e2),
        (0x180e, 0x180e),
        (0x200b, 0x200f),
        (0x2028, 0x2029),
        (0x202a, 0x202e),
        (0x2060, 0x2064),
        (0x2066, 0x206f),
        (0xfeff, 0xfeff),
        (0xfff9, 0xfffb),
        (0x110bd, 0x110bd),
        (0x110cd, 0x110cd),
        (0x13430, 0x1343f),
        (0x1bca0, 0x1bca3),
        (0x1d173, 0x1d17a),
        (0xe0001, 0xe0001),
        (0xe0020, 0xe007f),
        // Private use, as far as it goes: fonts show there what they like.
        (0xf0000, 0x10ffff),
    ];

    #[test]
    fn what_the_eye_would_miss_is_shown_as_a_question_mark() {
        for (first, last) in UNSEEN {
            for c in (first..=last).filter_map(char::from_u32) {
                let shown = field(&format!("a{c}b"), 100);
                assert_eq!(shown, "a?b", "{:x}", u32::from(c));
                let shown = line(&format!("a{c}b"), 100);
                let is_break = c == '\n';
                assert!(
                    shown == "a?b" || is_break && shown == "a b",
                    "{:x}",
                    u32::from(c)
                );
            }
        }
        for c in ['\u{e000}', '\u{f8ff}', '\u{378}', '\u{ffff}', '\u{e0100}'] {
            assert_eq!(field(&c.to_string(), 100), "?");
        }
    }

    #[test]
    fn ordinary_text_of_any_script_is_left_alone() {
        for text in [
            "2018/09/05 11:17:39 \"it's\" \\ 100% `$HOME` ~",
            "Grüße, señor, çà et là, ẞ, ŁÓDŹ, Việt Nam",
            "Ελληνικά, Кириллица, Հայերեն, ქართული",
            "עברית שָׁלוֹם, العربية مَرْحَبًا, فارسی, اردو",
            "हिन्दी क्षत्रिय, বাংলা, தமிழ், తెలుగు, ಕನ್ನಡ, മലയാളം, සිංහල",
            "ภาษาไทย น้ำ, ລາວ, မြန်မာ, ខ្មែរ, བོད་ཡིག, አማርኛ",
            "日本語　カタカナ、漢字。中文「繁體」 한국어",
            "e\u{301} n\u{303}, 🐘 ❤\u{fe0f} 👍🏽 🇩🇪 → ≤ € № ☃",
            "« guillemets »\u{a0}! „so“ “so” ‘so’ – — …",
        ] {
            assert_eq!(field(text, 1000), text);
            assert_eq!(line(text, 1000), text);
        }
    }

    #[test]
    fn an_error_of_the_system_s_is_said_without_its_number() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(reason(&error), "No such file or directory");
        assert_eq!(
            reason(&io::Error::other("why (os error 2)")),
            "why (os error 2)"
        );
    }

    #[test]
    fn several_lines_become_one() {
        assert_eq!(line("  a b \r\n\tc\n\nd\n", 100), "a b c  d");
        assert_eq!(line("a\rb\x1b[31m\0", 100), "a?b?[31m?");
        assert_eq!(line("", 100), "");
    }

    #[test]
    fn what_is_too_long_is_cut_at_a_character_and_marked() {
        assert_eq!(line("abcdefgh", 8), "abcdefgh");
        assert_eq!(line("abcdefghi", 8), "abcde...");
        for most in 3..20 {
            for text in ["é".repeat(50), "🐘".repeat(50), "日本語".repeat(9)] {
                let shown = line(&text, most);
                assert!(shown.len() <= most && shown.len() + 4 > most, "{shown}");
                let shown = shown.strip_suffix(CUT).expect("a mark");
                assert!(text.starts_with(shown), "{shown}");
            }
        }
        let endless = std::iter::repeat('x');
        assert_eq!(fit(endless, 2000).len(), 2000);
    }
}
