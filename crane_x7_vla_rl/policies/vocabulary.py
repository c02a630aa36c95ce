"""Words beside those of `lexicon` that a request for a cube may have, in English and Japanese.

Text in lower case → its first word that is in neither, or None. A sentence with a word that nobody
listed may be about anything ("Anna will pick up the red cube"), so it is no task.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from crane_x7_vla_rl.policies import lexicon

_WORDS = """
a an the this that these those its my mine your yours our his i me you we us it they them there
here of in on at to from off up down with without by for onto into upon over above under out across
around round through toward towards next near close beside besides between behind along as than
like and or but so then because since which who what where how not no t d s ll re ve m be is too
are am been being was were do does did done doing have has had having will would shall should can
could may might must ought need needs needed want wants wanted let lets go goes going come get gets
getting got gonna wanna make makes making sure if when while after before until once such also both
each every any either all most more less some other others else another rest only even

please pls plz pleas plese kindly thanks thank thankyou thx cheers ta appreciate appreciated
grateful thankful obliged great nice good lovely wonderful perfect cool love mate buddy pal
friend sir mister mr miss hey hi hello ok okay k alright right well now just simply yes yeah yep oh
ah um er uh hmm robot robo bot machine computer alexa siri google crane x x7 mind kind enough
possible possibly perhaps maybe prefer wish wishing hope hoping wonder wondering glad happy time
ready u ur teh hte favour favor bother trouble much very really quite honestly actually instead ya
pretty real lot help demo destination object him her ask

carefully careful gently gentle slowly slow quickly quick fast softly smoothly steadily firmly
tightly tight straight directly immediately soon asap away again first second third last finally
exactly precisely bit little slightly safely securely properly nicely lightly quietly together
forward upward upwards upright vertically still today moment minute seconds finish finished able
ahead way completely fully whole

table desk tabletop counter surface workspace scene world front middle center centre side sides top
bottom edge left air height high higher cm mm centimetre centimetres centimeter centimeters
millimetres millimeters inch inches several few couple one ones arm hand hands gripper grippers
fingers finger claw jaws tip end effector empty free flat nearby two three four five six seven
eight nine ten bright dark light deep pale vivid sky forest grass sea blood royal solid pure bold

task job goal mission instruction command action step order execute perform run start begin try
continue proceed find locate look see spot identify choose select use using reach reaching grip
grasp hold holding opening open closing belong belongs sit sitting sits stand standing lie lying
lies rests resting wait waiting land ended ends turn called named coloured colored colour color
colours colors shade tone wherever ensure leave knocking dropping test trial experiment round
attempt position pick place lift
"""
ENGLISH: Final = frozenset(_WORDS.split())
ENGLISH_WORD: Final = re.compile(r"[^\W\d_ぁ-ヿ一-鿿々]+")
"""Of English, or of a script that is neither."""
JAPANESE: Final = re.compile(
    r"[持取掴摘拾上下握置載乗運移動配盛付皿机台中前右左側横隣手指腕今次先方所位一二三少丁寧慎重静優速早急願致頂様]"
    r"|[済申訳恐入悪出来良欲嬉助空真直軽目小大四角木色形向端奥頼示命令作業行始見探選使幸構番数代標高思本立体物箱積奴分操]"
    r"|最初|最後|場所|失礼|課題|仕事|実行|開始|状態|対象|目標|終了|完了|煉瓦|[私僕俺]に"
    r"|テーブル|デスク|ロボット|ロボ|アーム|グリッパー?|ハンド|センチ|ミリ|タスク|マス|アレクサ|グーグル"
    r"|オーケー|オッケー|シリ|ヘイ|ポン|サッ|スッ|グッ|ソッ|ヒョイ|ー"
)
JAPANESE_WORD: Final = re.compile(r"[ァ-ヺー一-鿿々]+")
KNOWN: Final = (
    lexicon.COLOUR,
    lexicon.LIFT,
    lexicon.PLACE,
    re.compile(rf"\b({lexicon.ADJECTIVE}|{lexicon.CUBE}|{lexicon.PLATE}|{lexicon.WISH})\b"),
    re.compile(rf"\b({lexicon.LIFTED}|{lexicon.PLACED})\b"),
    re.compile(lexicon.CUBE_NOUN_JA),
    re.compile(lexicon.PLATE_NOUN_JA),
)

ACTS: Final = KNOWN[:3]
"""What no aside has: a colour, an action."""
CLAUSE: Final = re.compile(r"[^,.;:!?。、]+[,.;:!?。、]*")
REASON: Final = re.compile(
    r" (because|since|so that|so (?=(i|we|they|he|she)\b)|for (?=(him|her|my|our|us|them)\b)).*"
)
"""The end of a clause, from there on."""
ASIDE_BEFORE: Final = re.compile(
    r"\s*(?!(at|on|upon|in|after|during|by|every|each|as soon|with)\b)[\x00-\x7f]*"
    r"|.*(。|(から|ので|が|けど|けれど|けれども|んで)、)"
)
ASIDE_AFTER: Final = re.compile(r"\s*(because|since|as|so|i|we|my|our|it|that|this|they)\b.*")
NO_ASIDE: Final = re.compile(
    r"\b(say|says|said|saying|tell|tells|told|read|reads|wrote|writes|written|hear|heard|hears|dream"
    r"|dreams|dreamt|imagine|suppose|pretend|example|joke|joking|kidding|story|song|translate|repeat"
    r"|mean|means|meant|opposite|wrong|mistake|used|claim|claims|order|orders|ordered|password|joked"
    r"|tomorrow|yesterday|tonight|later|morning|afternoon|evening|night|noon|week|hour|hours|o'clock"
    r"|minutes|days|signal|(mon|tues|wednes|thurs|fri|satur|sun)day)s?\b"
    r"|明日|昨日|後で|あとで|夜|朝|昼|午後|午前|時間|合図|夢|例え|間違|冗談|逆"
)
"""Words of a report, of a mistake or of another time."""


def _has(text: str, patterns: Sequence[re.Pattern[str]]) -> bool:
    return any(pattern.search(text) for pattern in patterns)


def _without_asides(text: str) -> str:
    """Return it without clauses that may be about anything: "my hands are full, so …"."""
    kept, is_before = "", True
    for found in CLAUSE.finditer(text):
        clause = found[0]
        if (reason := REASON.search(clause)) and not _has(reason[0], (lexicon.COLOUR, NO_ASIDE)):
            clause = clause[: reason.start()]
        aside = ASIDE_BEFORE if is_before else ASIDE_AFTER
        acts = _has(clause, ACTS)
        if acts or _has(clause, (NO_ASIDE,)) or not aside.fullmatch(clause):
            kept += clause
        is_before = is_before and not acts
    return kept


def unknown(text: str) -> str | None:
    """Return the first word of it that is not known; digits, hiragana and marks always are."""
    text = _without_asides(text)
    for pattern in KNOWN:
        text = pattern.sub(" ", text)
    for word in ENGLISH_WORD.findall(text):
        if word not in ENGLISH:
            return str(word)
    for word in JAPANESE_WORD.findall(text):
        if left := JAPANESE.sub("", word):
            return str(left)
    return None
