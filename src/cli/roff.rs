//! Markdown to the macros of man(7): as much of it as the manual uses, which is headings, paragraphs, lists, tables and blocks of
//! code; code, what is strong, and links inside of text. For the build: the program holds only what comes of it.

/// A document from its first heading of the second level on; what comes before is for those who read it as Markdown.
pub fn roff(markdown: &str) -> String {
    let mut page = Page::default();
    let body = markdown
        .find("\n## ")
        .map_or("", |start| &markdown[start..]);
    for line in body.lines() {
        page.line(line);
    }
    page.end_block();
    page.text
}

/// Plain text, in which nothing is a macro.
fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// What the lines that follow belong to.
#[derive(Default)]
enum Block {
    #[default]
    None,
    Paragraph,
    Item,
    Code,
    /// With the cells of its head.
    Table(Vec<String>),
}

#[derive(Default)]
struct Page {
    text: String,
    block: Block,
}

impl Page {
    fn line(&mut self, line: &str) {
        match (&self.block, line) {
            (Block::Code, "```") => {
                self.text.push_str(".fi\n.RE\n");
                self.block = Block::None;
            }
            (Block::Code, _) => self.verbatim(line),
            (_, "") => self.end_block(),
            (_, _) if line.starts_with("```") => {
                self.end_block();
                self.text.push_str(".PP\n.RS 4\n.nf\n");
                self.block = Block::Code;
            }
            (Block::Table(head), _) => {
                let row = row(line, head);
                self.text.push_str(&row);
            }
            (_, _) => self.prose(line),
        }
    }

    fn prose(&mut self, line: &str) {
        if let Some(title) = line.strip_prefix("## ") {
            self.end_block();
            self.text
                .push_str(&format!(".SH {}\n", escape(&title.to_uppercase())));
        } else if let Some(title) = line.strip_prefix("### ") {
            self.end_block();
            self.text.push_str(&format!(".SS {}\n", escape(title)));
        } else if line.starts_with('|') {
            self.end_block();
            self.block = Block::Table(cells(line));
        } else if let Some(item) = line.strip_prefix("- ") {
            self.text
                .push_str(&format!(".IP \\(bu 2\n{}\n", inline(item)));
            self.block = Block::Item;
        } else {
            if let Block::None = self.block {
                self.text.push_str(".PP\n");
                self.block = Block::Paragraph;
            }
            self.text
                .push_str(&format!("{}\n", inline(line.trim_start())));
        }
    }

    fn verbatim(&mut self, line: &str) {
        // A line that begins with one of these would be a macro.
        let guard = if line.starts_with(['.', '\'']) {
            "\\&"
        } else {
            ""
        };
        self.text.push_str(&format!("{guard}{}\n", escape(line)));
    }

    fn end_block(&mut self) {
        self.block = Block::None;
    }
}

/// The cells of a line of a table.
fn cells(line: &str) -> Vec<String> {
    let line = line.trim().trim_start_matches('|').trim_end_matches('|');
    line.split(" |")
        .map(|cell| cell.trim().to_owned())
        .collect()
}

/// A row as an entry of its own: the first cell is its tag, the second its text, and others follow after the heads of their columns.
fn row(line: &str, head: &[String]) -> String {
    let cells = cells(line);
    // Under the head there is a line of dashes.
    if cells.iter().all(|cell| cell.starts_with("---")) {
        return String::new();
    }
    let (tag, rest) = cells.split_first().expect("a cell");
    let mut entry = format!(".TP\n{}\n", inline(&format!("**{tag}**")));
    for (cell, head) in rest.iter().zip(head.iter().skip(1)) {
        let is_first = std::ptr::eq(cell, &rest[0]);
        if cell.is_empty() {
            continue;
        }
        let intro = if is_first {
            String::new()
        } else {
            format!("{}: ", inline(head))
        };
        let end = if cell.ends_with('.') { "" } else { "." };
        entry.push_str(&format!("{intro}{}{end}\n", inline(cell)));
    }
    entry
}

/// Text with code and what is strong in bold, and of links their words.
fn inline(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    // Inside of what is strong, code is no stronger.
    let mut strong = false;
    while let Some(letter) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("**") {
            strong = !strong;
            out.push_str(if strong { "\\fB" } else { "\\fR" });
            rest = after;
        } else if letter == '`'
            && let Some((code, after)) = rest[1..].split_once('`')
        {
            let code = escape(code);
            out.push_str(&if strong {
                code
            } else {
                format!("\\fB{code}\\fR")
            });
            rest = after;
        } else if letter == '['
            && let Some((words, after)) = rest[1..].split_once("](")
            && let Some((_, after)) = after.split_once(')')
        {
            out.push_str(&inline(words));
            rest = after;
        } else {
            out.push_str(&escape(&letter.to_string()));
            rest = &rest[letter.len_utf8()..];
        }
    }
    if out.starts_with(['.', '\'']) {
        out.insert_str(0, "\\&");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn becomes(markdown: &str, page: &str) {
        let text = roff(&format!("# Title\n\nIntroduction.\n\n{markdown}"));
        assert_eq!(text, page);
    }

    #[test]
    fn headings_and_paragraphs() {
        becomes(
            "## The lease\n\nOne\ntwo.\n\nThree.\n\n### A part\n\nFour.\n",
            ".SH THE LEASE\n.PP\nOne\ntwo.\n.PP\nThree.\n.SS A part\n.PP\nFour.\n",
        );
    }

    #[test]
    fn words_in_a_text() {
        becomes(
            "## X\n\nGive `--wait 5` or **all** of a [link `x`](#y), a\\b.\n",
            ".SH X\n.PP\nGive \\fB\\-\\-wait 5\\fR or \\fBall\\fR of a link \\fBx\\fR, a\\eb.\n",
        );
        // What only looks like them.
        becomes("## X\n\na [b] ` c\n", ".SH X\n.PP\na [b] ` c\n");
    }

    #[test]
    fn a_line_is_no_macro() {
        becomes(
            "## X\n\n.pgpass is read\n\n```sh\n.x 'y'\n'z -n\n```\n\nafter\n",
            ".SH X\n.PP\n\\&.pgpass is read\n.PP\n.RS 4\n.nf\n\\&.x 'y'\n\\&'z \\-n\n.fi\n.RE\n.PP\nafter\n",
        );
    }

    #[test]
    fn items_with_lines_that_go_on() {
        becomes(
            "## X\n\nThese:\n\n- one\n  more\n- two\n\nafter\n",
            ".SH X\n.PP\nThese:\n.IP \\(bu 2\none\nmore\n.IP \\(bu 2\ntwo\n.PP\nafter\n",
        );
    }

    #[test]
    fn a_table_is_a_list_of_entries() {
        becomes(
            "## X\n\n| what | does | tested with |\n| --- | --- | --- |\n| `a` | holds | 15 |\n| b | refuses. | |\n\nafter\n",
            ".SH X\n.TP\n\\fBa\\fR\nholds.\ntested with: 15.\n.TP\n\\fBb\\fR\nrefuses.\n.PP\nafter\n",
        );
    }
}
