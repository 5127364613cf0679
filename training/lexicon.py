"""The words that the generators share. Short lists on purpose: each is seen often enough to be learnt."""

GIRLS = (
    "Mira", "Lena", "Tilda", "Nora", "Ivy", "Clara", "Rosa", "Hazel", "Dora", "Wren", "Ada", "Elsa", "Maya",
    "Ruth",
)  # fmt: skip
BOYS = (
    "Tom", "Milo", "Finn", "Oskar", "Leo", "Hugo", "Ben", "Jonas", "Eli", "Theo", "Sam", "Otto", "Noah",
    "Felix",
)  # fmt: skip

# Animals that can be heroes of a story.
CREATURES = (
    "fox", "rabbit", "mouse", "bear", "owl", "hedgehog", "badger", "otter", "squirrel", "frog", "duck",
    "cat", "dog", "goat", "donkey", "turtle", "crow", "mole", "deer", "goose",
)  # fmt: skip
CREATURE_GIRLS = ("Tansy", "Nutmeg", "Pebble", "Juniper", "Clover", "Fern")
CREATURE_BOYS = ("Pip", "Bramble", "Moss", "Biscuit", "Button", "Hob")
NAMES = (*GIRLS, *BOYS, *CREATURE_GIRLS, *CREATURE_BOYS)

TRADES = (
    "baker", "fisherman", "gardener", "tailor", "miller", "carpenter", "shepherd", "potter", "painter",
    "clockmaker",
)  # fmt: skip

TRAITS = (
    "curious", "brave", "shy", "kind", "clever", "cheerful", "quiet", "stubborn", "patient", "gentle",
    "careful", "lively",
)  # fmt: skip

PLACES = (
    "village", "valley", "forest", "harbor town", "small town", "mountain town", "river town", "old mill",
    "castle", "fishing village", "seaside town",
)  # fmt: skip

# Small things one can own, lose, find and give.
THINGS = (
    "kite", "lantern", "key", "drum", "map", "clock", "ribbon", "bell", "book", "boat", "scarf", "button",
    "basket", "flute", "coin", "ring", "hat", "whistle", "mirror", "compass", "violin", "teapot", "puppet",
    "ladder", "blanket",
)  # fmt: skip
COLORS = (
    "red", "blue", "green", "yellow", "silver", "golden", "white", "purple", "orange", "black",
)  # fmt: skip
FOODS = (
    "apple pie", "warm bread", "honey cake", "pea soup", "berry jam", "cheese", "pancakes", "plum tart",
    "carrot stew", "nut biscuits", "mushroom soup", "fresh rolls",
)  # fmt: skip
WEATHERS = (
    "sunny", "windy", "rainy", "foggy", "snowy", "bright", "cold", "warm", "grey", "stormy",
)  # fmt: skip

# Single words for look-up keys: concrete nouns, so that a prompt reads naturally.
KEY_WORDS = (
    "falcon", "anchor", "marble", "tunnel", "garden", "copper", "window", "pepper", "candle", "bridge",
    "castle", "walnut", "hammer", "saddle", "pillow", "rocket", "tiger", "lemon", "piano", "violet",
    "planet", "dragon", "button", "helmet", "island", "jacket", "kettle", "ladder", "magnet", "needle",
    "orchid", "parrot", "quartz", "ribbon", "salmon", "temple", "umber", "velvet", "wagon", "yarrow",
    "zebra", "acorn", "basket", "cactus", "desert", "engine", "feather", "glacier", "harbor", "iceberg",
    "jungle", "kitten", "lantern", "meadow", "nectar", "oyster", "pebble", "quiver", "raven", "shadow",
    "thunder", "uncle", "valley", "willow", "xenon", "yogurt", "zipper", "arrow", "bottle", "cherry",
    "dolphin", "ember", "forest", "grape", "hornet", "insect", "jewel", "kernel", "lizard", "mango",
    "napkin", "olive", "pencil", "rabbit", "silver", "turtle", "urchin", "violin", "winter", "beacon",
    "camera", "donkey", "eagle", "flute", "guitar", "honey", "ivory", "jigsaw", "koala", "locket", "mirror",
    "nickel", "onion", "palace", "radish", "summit", "tulip", "vessel", "walrus", "badger", "carpet",
    "diary", "easel", "fossil", "goblet", "hazel", "inkpot", "juniper", "lobster", "mosaic", "nugget",
    "otter", "puzzle", "quill", "rudder", "spiral", "trumpet", "unicorn", "vulture", "whistle", "amber",
    "breeze", "coral", "drum", "elbow", "fiddle", "gravel", "heron", "igloo", "jasmine", "lagoon", "muffin",
    "nutmeg", "orange", "pigeon", "racket", "sparrow", "teapot", "turnip", "visor", "waffle", "barrel",
    "cotton", "dagger", "emerald", "fabric", "ginger", "hatchet", "indigo", "jaguar", "laurel", "maple",
    "noodle", "opal", "pretzel", "ruby", "saffron", "tomato", "almond", "bamboo", "cobalt", "dynamo", "elk",
    "ferry", "garlic", "hollow", "ink", "jade", "kayak", "lily", "mitten", "nest", "oasis", "panda",
    "quarry", "reef", "sail", "torch", "urn", "vase", "wheel", "yacht", "zinc", "attic", "bonnet", "crater",
    "daisy", "fjord", "gravy", "hinge", "lark", "moss", "oar", "plum",
)  # fmt: skip

# Fields of small records.
RECORD_ITEMS = (
    "apples", "pencils", "candles", "books", "lamps", "chairs", "plates", "ropes", "eggs", "tiles",
    "bottles", "hats", "coins", "shirts", "boxes", "pears", "bricks", "cups", "nails", "boats",
)  # fmt: skip
CITIES = (
    "Alderby", "Brackwell", "Corrin", "Dunmere", "Eastling", "Fennick", "Glimmerford", "Harrowick",
    "Ivelport", "Juneford",
)  # fmt: skip
DAYS = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
)  # fmt: skip
