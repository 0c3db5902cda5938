"""Token texts that somebody's vocabulary holds and that a careless program would act upon instead of showing."""

MARKUP = "<b onmouseover=alert(1)>bold</b>"
SCRIPT_END = '</script><script>document.title="pwned"</script>'
COMMENT = "<!--<script>"
ENTITY = "&lt;i&gt;&#36;"
OVERRIDE = "abc\u202egnp.exe"
NUL = "a\x00b"
SURROGATE = "half \ud83d"
FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1")
DOLLARS = r"$x_$ and \$ and $$\frac$"
TEMPLATE = "%{text} %{customdata[0]} {title}"
QUOTES = "\"'`"
LONG = "ab" * 400
SPACES = "   "
BOTH_ENDS = "  two words "
LINES = "a\r\n\tb\u2028c"
WIDE = "日本語🙂"

HOSTILE = (
    MARKUP, SCRIPT_END, COMMENT, ENTITY, OVERRIDE, NUL, SURROGATE, *FORMULAS, DOLLARS, TEMPLATE, QUOTES, LONG, SPACES,
    BOTH_ENDS, LINES, WIDE, "", "\ufeff", "\u200b", "\x7f", "\u0301", "\\",
)  # fmt: skip
