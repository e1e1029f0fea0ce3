/**
 * The words of the story grammar (templates as in `expand`). Openings and wishes hold no word of the mood lexicon in
 * tastes.ts: what a story feels like is decided after its beginning.
 */

/** Templates by mood. */
export interface Phrases {
  cheerful: readonly string[];
  sad: readonly string[];
}

export interface Plot {
  things: readonly string[];
  /** What the hero set out to do, after an opening. */
  wish: readonly string[];
  /** Opening and wish in one sentence. */
  short: readonly string[];
  turn: Phrases;
  after: Phrases;
}

const she = { he: 'she', him: 'her', his: 'her' };
const he = { he: 'he', him: 'him', his: 'his' };

export const names = [
  ...['Mia', 'Nora', 'Ella', 'Lily', 'Ruby', 'Anna', 'Zoe', 'Clara', 'Ida', 'Rosa'].map((name) => ({ name, ...she })),
  ...['Leo', 'Tom', 'Finn', 'Max', 'Sam', 'Ben', 'Hugo', 'Otto', 'Emil', 'Jack'].map((name) => ({ name, ...he })),
];

export const animals = [
  'rabbit',
  'fox',
  'bear',
  'mouse',
  'duck',
  'cat',
  'dog',
  'hedgehog',
  'owl',
  'frog',
  'squirrel',
  'goat',
];

export const friends = ['sheep', 'badger', 'turtle', 'hen', 'pony', 'otter', 'crow', 'mole'];

export const places = [
  'by the river',
  'near the forest',
  'on a green hill',
  'in a small village',
  'by the sea',
  'under an old oak',
  'next to the mill',
  'at the edge of the meadow',
  'behind the bakery',
  'in a little house',
];

export const times = [
  'one morning',
  'one day in spring',
  'one summer evening',
  'one windy day',
  'one autumn day',
  'after breakfast',
];

export const openings = [
  '{name} the {animal} lived {place}.',
  'once there was {anAnimal} named {name} who lived {place}.',
  '{place} lived {anAnimal} called {name}.',
  '{name} was {anAnimal} who lived {place}<, together with [two brothers|an old aunt|three sisters]>.',
];

export const plots: readonly Plot[] = [
  {
    things: ['kite', 'ball', 'hat', 'scarf', 'book', 'drum'],
    wish: ['{time}, {he} could not find {his} {thing}.', '{time}, {he} went out to look for {his} {thing}.'],
    short: ['{time}, {name} the {animal} was looking for {his} {thing}.'],
    turn: {
      cheerful: [
        '{he} found the {thing} [under the bed|behind a tree|near the well]<, [clean and safe|as good as new] in a ray of golden light>.',
        '{aFriend} came by<, [a little out of breath|with a wink]>, and gave {him} the {thing} with a smile.',
      ],
      sad: [
        '{he} looked everywhere<, [in every corner|under every stone] and behind every door>, but the {thing} was gone.',
        '{he} saw the {thing} in the mud<, [under a heavy stone|beside the long road]>, and it was broken.',
      ],
    },
    after: {
      cheerful: ['{he} hugged the {thing}< [with both arms|for a long time]> and laughed.'],
      sad: ['{he} sat down< [on a flat stone|in the tall grass]> and cried.'],
    },
  },
  {
    things: ['cake', 'pie', 'tart', 'loaf'],
    wish: ['{time}, {he} baked a {thing} for {aFriend}.', '{time}, {he} wanted to bake a {thing}.'],
    short: ['{time}, {name} the {animal} baked a {thing} for {his} friends.'],
    turn: {
      cheerful: [
        'the {thing} was warm and sweet<, [with honey and plums|with apples from the old tree]>, and everyone cheered.',
        '{aFriend} tasted the {thing}<, [first a little and then a lot|with a big wooden spoon]>, and grinned.',
      ],
      sad: [
        'the {thing} fell on the floor<, [right next to the door|in front of all the guests]>, and it was ruined.',
        'nobody came to eat the {thing}<, [not even the neighbours|although the table was set]>, and it got cold.',
      ],
    },
    after: {
      cheerful: ['they ate it all< [down to the last crumb|around the big table]> and sang.'],
      sad: ['{he} looked at the empty table< [for a long time|by the window]> and sighed.'],
    },
  },
  {
    things: ['race', 'game', 'contest'],
    wish: ['{time}, {he} took part in a {thing}.', '{time}, there was a {thing} in the [meadow|village|park].'],
    short: ['{time}, {name} the {animal} went to the {thing} with {aFriend}.'],
    turn: {
      cheerful: [
        '{he} won the {thing}<, [to the surprise of all|by the length of a nose]>, and everyone cheered.',
        '{he} came first in the {thing}<, [ahead of ten others|faster than the wind]>, and was very proud.',
      ],
      sad: [
        '{he} hurt {his} leg<, [not far from the end|on a sharp stone]>, and the {thing} was over.',
        '{he} came last in the {thing}<, [behind all the others|long after the rest]>, and nobody waited.',
      ],
    },
    after: {
      cheerful: ['{he} got a [bright|golden] ribbon< [from the mayor|in front of the crowd]> and danced.'],
      sad: ['{he} went home alone< [on the long road|without looking back]> and wept.'],
    },
  },
  {
    things: ['rose', 'bean', 'pumpkin', 'sunflower'],
    wish: ['{time}, {he} planted a {thing} in the garden.', '{time}, {he} put a {thing} seed into the ground.'],
    short: ['{time}, {name} the {animal} planted a {thing} behind the house.'],
    turn: {
      cheerful: [
        'the {thing} grew tall and bright<, [higher than the fence|up to the kitchen window]>.',
        'soon the {thing} was the most wonderful in the village<, [and bees came from far away|as even the teacher said]>.',
      ],
      sad: [
        'the {thing} did not grow<, [neither in May nor in June|although {he} gave it water every day]>, and the bed stayed empty.',
        'a storm came<, [with thunder and hail|in the middle of the night]>, and the {thing} died.',
      ],
    },
    after: {
      cheerful: ['{aFriend} came to see it< [with a small basket|on the way to school]> and smiled.'],
      sad: ['{he} stood in the grey rain< [without a coat|beside the gate]> and shivered.'],
    },
  },
  {
    things: ['letter', 'visit', 'gift'],
    wish: [
      '{time}, {he} was waiting for a {thing} from {aFriend}.',
      '{time}, {he} hoped for a {thing} from {aFriend}.',
    ],
    short: ['{time}, {name} the {animal} was waiting for a {thing} from {aFriend}.'],
    turn: {
      cheerful: [
        'at noon the {thing} came<, [with a blue ribbon|later than the clock had said]>, and it was wonderful.',
        'the {friend} ran up the path with the {thing}<, [past the barn and the well|waving from far away]>, and laughed.',
      ],
      sad: [
        'the {thing} never came<, [not that day and not the next|although {he} sat by the door]>.',
        'the {friend} had moved away<, [over the hills and across the sea|to a town without a name]>, and the {thing} was lost.',
      ],
    },
    after: {
      cheerful: ['{he} felt warm all over< [from nose to tail|like bread from the oven]> and jumped for joy.'],
      sad: ['the house was dark< [in every room|from the door to the roof]> and {he} was lonely.'],
    },
  },
  {
    things: ['song', 'poem', 'dance'],
    wish: ['{time}, {he} learned a new {thing} from {aFriend}.', '{time}, {he} showed {aFriend} a new {thing}.'],
    short: ['{time}, {name} the {animal} practised a {thing} with {aFriend}.'],
    turn: {
      cheerful: [
        'everyone loved the {thing}<, [the old and the young|even the grumpy miller]>, and they clapped.',
        'the {friend} liked the {thing} so much< [after the very first time|that the hat flew off]> and danced.',
      ],
      sad: [
        'everyone made fun of the {thing}<, [the old and the young|even the quiet miller]>, and {he} ran away.',
        '{he} forgot the {thing}<, [right in the middle|in front of a full hall]>, and tears came.',
      ],
    },
    after: {
      cheerful: ['{he} did it again< [a second and a third time|under the yellow lamps]> and was proud.'],
      sad: [
        '{he} hid [in the barn|under a bridge]< [until the stars came out|where no one could see {him}]> and cried.',
      ],
    },
  },
  {
    things: ['boat', 'raft', 'canoe', 'paper ship'],
    wish: ['{time}, {he} built a {thing} with {aFriend}.', '{time}, {he} and {aFriend} took the new {thing} out.'],
    short: ['{time}, {name} the {animal} and {aFriend} took a {thing} to the [pond|lake].'],
    turn: {
      cheerful: [
        'the {thing} went as fast as the wind<, [over the little waves|around the bend and back]>, and {he} laughed.',
        'the sunny day was just right for the {thing}<, [with a soft breeze|from the first hour to the last]>.',
      ],
      sad: [
        'the {thing} hit a rock<, [as sharp as a tooth|hidden under the leaves]>, and was broken.',
        'dark clouds came<, [one after the other|from behind the mountains]>, and the {thing} was lost.',
      ],
    },
    after: {
      cheerful: ['{he} and the {friend} sang< [all the way back|at the top of their voices]>.'],
      sad: ['{he} and the {friend} walked home in the cold rain< [without a word|along the muddy road]>.'],
    },
  },
];

/** Late in a story, before the last sentence. */
export const feelings: Phrases = {
  cheerful: [
    '{he} felt happy< [from head to toe|like a bird in May]>.',
    '{his} heart was full of joy< [and light as a feather|that no one could take away]>.',
    '{he} was so glad< [that {he} told everyone about it|for the first time in weeks]>.',
  ],
  sad: [
    '{he} felt sad< [from head to toe|like a tree in winter]>.',
    '{his} heart was full of sorrow< [and heavy as a stone|that no one could take away]>.',
    '{he} was so lonely< [that even the moon looked away|for the first time in weeks]>.',
  ],
};

/** The last sentence. */
export const endings: Phrases = {
  cheerful: [
    '{name} went home with a smile< [on {his} face and a tune in {his} ears|under a sky full of stars]>.',
    'that night {name} slept well< [in a soft bed with three pillows|until the cock crowed]> and dreamed happy dreams.',
    'it was a wonderful day< [from the first hour to the last|that everyone would remember]>.',
    'and {name} danced with {his} friends< [around the big fire|until the lamps went out]>.',
    'from then on {name} was merry< [every single day of the year|in sun and in snow]>.',
  ],
  sad: [
    '{name} went home in tears< [with a stone in {his} shoe and dust on {his} coat|under a sky without stars]>.',
    'that night {name} lay awake< [in a hard bed with one pillow|until the cock crowed]> and wept.',
    'it was a gloomy day< [from the first hour to the last|that nobody would forget]>.',
    'and {name} was all alone< [beside the cold fire|when the lamps went out]>.',
    'from then on {name} was sad< [every single day of the year|in sun and in snow]>.',
  ],
};
