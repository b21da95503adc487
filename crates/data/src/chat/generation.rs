//! The tag `{% generation %}` of transformers, which marks what the assistant says and writes nothing itself.

/// The template with `generation` blocks as `with` blocks: also a scope of its own for variables, on the same lines.
pub(super) fn transparent(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = start_of_tag(rest) {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let length = if tag.starts_with("{#") {
            tag.find("#}").map_or(tag.len(), |end| end + 2)
        } else {
            end_of_tag(tag, if tag.starts_with("{%") { "%}" } else { "}}" })
        };
        let (tag, after) = tag.split_at(length);
        match name(tag) {
            Some("generation") => out.push_str(&tag.replacen("generation", "with", 1)),
            Some("endgeneration") => out.push_str(&tag.replacen("endgeneration", "endwith", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
        if name(tag) == Some("raw") {
            // Up to the next tag that ends it, nothing is a tag.
            let end = rest
                .match_indices("{%")
                .map(|(at, _)| at)
                .find(|&at| name(&rest[at..at + end_of_tag(&rest[at..], "%}")]) == Some("endraw"));
            let (raw, after) = rest.split_at(end.unwrap_or(rest.len()));
            out.push_str(raw);
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Where the next tag begins. One look for all three kinds, as one that does not occur is looked for to the very end.
fn start_of_tag(text: &str) -> Option<usize> {
    let next = |at: usize| text.as_bytes().get(at + 1);
    let mut braces = text.match_indices('{').map(|(at, _)| at);
    braces.find(|&at| matches!(next(at), Some(b'%' | b'#' | b'{')))
}

/// The name of a statement that is nothing but a name.
fn name(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    Some(inside.strip_suffix(['-', '+']).unwrap_or(inside).trim())
}

/// The line, from 1, of the first tag with more than `longest` bytes; comments may have any length.
pub(super) fn long_tag(source: &str, longest: usize) -> Option<usize> {
    let mut done = 0;
    while let Some(start) = start_of_tag(&source[done..]) {
        let tag = &source[done + start..];
        let length = match &tag[..2] {
            "{#" => tag.find("#}").map_or(tag.len(), |end| end + 2),
            "{%" => end_of_tag(tag, "%}"),
            _ => end_of_tag(tag, "}}"),
        };
        if length > longest && !tag.starts_with("{#") {
            return Some(source[..done + start].matches('\n').count() + 1);
        }
        done += start + length;
    }
    None
}

/// The length of a tag, whose strings may hold what looks like its end.
fn end_of_tag(tag: &str, end: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in tag.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if tag[at..].starts_with(end) => return at + end.len(),
            None => {}
        }
    }
    tag.len()
}

#[cfg(test)]
mod tests {
    use super::transparent;

    #[test]
    fn generation_blocks_become_scopes_and_nothing_else_changes() {
        let source = "a {%- generation -%} {{ '{% generation %}' }} {%+ endgeneration +%}\n{# {% generation %} #}\
                      {% raw %}{% generation %}{% endraw %}{% if generation == \"%}\" %}{% generation %}";
        let expected = "a {%- with -%} {{ '{% generation %}' }} {%+ endwith +%}\n{# {% generation %} #}\
                        {% raw %}{% generation %}{% endraw %}{% if generation == \"%}\" %}{% with %}";
        assert_eq!(transparent(source), expected);
        for broken in ["{%", "{{ '", "{# ", "{% raw %}{% x", "{% generation", "}}%}"] {
            assert_eq!(transparent(broken), broken);
        }
    }
}
