"""Context around a segment marker: what may precede it and what must follow it, in English, German and Chinese.

A marker can also be another word (`Moment` in physics) or the start of one (`不过原点` is "not through the origin").
A list of such words would never be complete, so the text after the marker decides: a pause, or how a clause continues.
If both readings are valid Chinese, the text is not cut.
"""

from __future__ import annotations

from reasoning.text_normalization import word_set

UNSPACED = r"[\u3040-\u30ff\u3400-\u9fff]"
"""Scripts written without spaces between words."""
LEADS = word_set(
    "no nope oh ah and but so ok okay well now yes yeah hm hmm alright um uh huh hey then or nein aber ach "
    "und also doch ja gut oder 不 哦 啊 哎 呃 那"
)
"""Interjections and conjunctions that may precede a marker: "No, wait", "Aber warte"."""
FILLER = r"(?:also|just|quickly|carefully|actually|now|really|first|possible|different|noch|nochmals?|einmal)"
"""Words that may occur inside a marker: "Let me also verify"."""

_END = r"(?=\s*\Z|[\n\r])"
_PAUSE = rf"(?:(?=[,.!?…:;—–，。！？、：；～~*_'\"’”」』）)])|{_END})"
"""Punctuation or end of line."""
_CLAUSE = (
    rf"(?:{_PAUSE}|(?=我|如果|若|题目|答案|因为|由于|可以|应该|需要|也许|可能|或许|还|要|让|现在|刚才|这里|这样|这道|这题"
    r"|既然|为了|仔细|注意|考虑|难道|好像|似乎|是不是|会不会|不对|等等|等一下))"
)
"""A pause, or a word that continues a Chinese clause and cannot be part of a longer word."""
_SPAN = (
    r"(?:a few|several|some|\d+|two|three|four|five|ten)\W+(?:\w+\W+)?(?:s|secs?|seconds?|min|minutes?|hours?|days?)"
)
_VERB = rf"times?|staff|lists?|periods?|costs?|rates?|rooms?|tables?|for|until|till|on|at|here|there|and see|{_SPAN}"
_RELATIVE = "in|an|auf|bei|zu|von|mit|wo|der|die|das|dem|den"
FOLLOWED = {
    "wait": rf"(?!\s(?:{_VERB})\b)",
    "however": r"(?!\s(?:many|much|long|hard|often|far|small|large|big|great|few|little|high|low|old|fast)\b)",
    "hold on": r"(?!\sto\b)",
    "hang on": r"(?!\sto\b)",
    "moment": rf"(?:(?=[,.!?…—–]|\s(?:mal|bitte)\b)|{_END})(?!,\s(?:{_RELATIVE})\b)",
    "einen moment": rf"(?:{_PAUSE}|(?=\s(?:mal|bitte)\b))",
    "halt": rf"(?:{_PAUSE}|(?=\s(?:mal|stopp?)\b))",
    "warte": rf"(?:{_PAUSE}|(?=\s(?:mal|kurz|eben|nein|doch|ich|ist|das|da|es|wenn|vielleicht)\b))",
    "等等": _CLAUSE,
    "等一下": _CLAUSE,
    "不对": rf"(?:{_PAUSE}|(?=[啊吧呀哦呢了劲]))",
    "对了": _PAUSE,
    "不过": _CLAUSE,
    "其实": rf"(?:{_CLAUSE}|(?=[这那它他也就只是在有没不很更并本每直从当A-Za-z\d$\\]))",
    "或者": rf"(?:{_CLAUSE}|(?=用|换|从|直接|通过|更|按|试|设|说))",
    "另外": rf"(?:{_CLAUSE}|(?=也|再|根据|一[个种][方思想]))",
    "另一种": r"(?=[方思想可解做办角情看])",
    "换一种": r"(?=[方思想解做办角看])",
    "换个": r"(?=[方思想解做办角])",
    "因此": r"(?![时次处题点式类种人项刻]|数(?![列字值]))",
    "但": r"(?![丁书凡愿求泽尼])",
    "再试": rf"(?:{_PAUSE}|(?=[一试着用其另看次几下别\d$\\]))",
}
"""Pattern that must follow a marker, by marker."""
