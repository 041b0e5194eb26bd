"""The scorers' tokenizer: one regular expression for the Penn Treebank rules that captions need.

The COCO scorers run Stanford's PTBTokenizer (Java), lower-case the text and remove punctuation.
`ptb_like` does the same: it splits clitics ("man's" -> man 's, "don't" -> do n't), keeps hyphenated
words, and removes quotes, brackets, full stops, commas, colons, semicolons and dashes. Any other
character (&, $, %) is a token. On Flickr8k's 40,460 captions it differs from PTBTokenizer in 16:
brackets, which the Java tokenizer's lower-casing turns into "-lrb-", a few abbreviations ("jr."),
and two web addresses. Every score depends on its tokenizer, so reports name this one by `NAME`.
"""

from __future__ import annotations

import re

NAME = "ptb_like"

# Order matters: "do" of "don't" comes first, which leaves the clitic to the next match.
PATTERN = re.compile(
    r"""[a-z]+(?=n't\b)                     # do|n't
      | n't\b | '(?:s|m|d|re|ve|ll)\b       # clitics
      | \d+(?:[.,:/]\d+)+                   # 1,000  3.5  10:30  1/2
      | (?:[a-z]\.){2,}                     # u.s.
      | (?:mr|mrs|ms|dr|st)\.(?=\s)         # titles keep their dot
      | [^\W_]+(?:(?:-+|')(?!(?:s|m|d|re|ve|ll)\b)[^\W_]+)*   # words, well-known, o'neill
      | [^\w\s.,:;!?'"`()\[\]{}\u2010-\u2015\u2018-\u201f\u2026-]
    """,
    re.VERBOSE,
)
APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u00b4": "'"})
SPLIT_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
}


def ptb_like(text: str) -> list[str]:
    """Tokenise a caption: lower-case, without punctuation.

    "A man's well-known dog ." gives a, man, 's, well-known, dog.
    """
    tokens = PATTERN.findall(text.lower().translate(APOSTROPHES))
    return [part for token in tokens for part in SPLIT_WORDS.get(token, (token,))]
