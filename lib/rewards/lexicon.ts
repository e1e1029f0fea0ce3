/** Words of a story that goes well; inflected forms are listed, nothing is stemmed. */
const pleasant = `
admire adored adventure amazing applause awesome beautiful beauty best better birthday bless blessed bloom bouncy brave bright
brilliant calm careful caring celebrate celebrated charming cheer cheered cheerful clapped clever colorful comfortable cozy
cuddle cuddled curious cute dance danced dancing dear delicious delight delighted eager easy enjoy enjoyed excited exciting fair
fantastic favorite fine free fresh friend friendly friends fun funny generous gentle gift giggle giggled giggling glad gold
golden good grateful great grin grinned happier happily happy healthy help helped helpful helping hero honest hope hoped hug
hugged hugging hugs humor jolly joy joyful joyfully kind kindly kindness kiss kissed laugh laughed laughing laughter like liked
lively love loved lovely loves loving lucky magic magical merry music neat nice peace peaceful play played playful playing
pleasant please pleased polite pretty prize proud proudly rainbow relax relaxed relieved rescue rescued safe safely sang
satisfied share shared sharing shine shining shiny sing singing smart smile smiled smiles smiling snuggle soft song sparkle
sparkled sparkling special strong success sun sunny sunshine super surprise surprised sweet tasty tender thank thanked thankful
thanks together treasure treat trust warm warmth welcome welcomed well winner wise wish won wonder wonderful yay yummy`;

/** Words of a story that goes badly. */
const unpleasant = `
accident ache afraid alone anger angrily angry annoyed anxious argue argued ashamed awful bad badly bit bitter bleed blood
bored boring bother bothered break broke broken bruise bully burn burned careless cold confused crash crashed cried cries cruel
cry crying danger dangerous dark darkness dead death destroyed die died difficult dirty disappear disappeared disappointed dull
dying empty enemy envious evil fail failed fall fear fell fierce fight fighting foolish forgot fought frightened frown frowned
frustrated gloomy gone greedy grief grumpy guilty harm hate hated helpless hit horrible hungry hurt hurting hurts ill injured
jealous lied lonely lose losing lost mad mean mess messy miserable mistake misunderstood nasty naughty nervous noisy pain
painful panic poor problem punish punished rain regret regretted rotten rough rude ruin ruined sad sadly sadness scared scary
scratch scream screamed selfish shout shouted shy sick silly sigh sighed sob sobbed sorrow sorry stole stolen storm stormy
stuck stupid suffer tear tears terrible terrified thief threw thunder tired torn trapped trouble ugly unfair unhappy unkind
upset weak weep wept wicked worried worry worse worst wound wrong yelled`;

const setOf = (words: string): ReadonlySet<string> => new Set(words.trim().split(/\s+/));

/** Written for this library; they are short on purpose, so that a reward can be read. */
export const pleasantWords = setOf(pleasant);
export const unpleasantWords = setOf(unpleasant);
