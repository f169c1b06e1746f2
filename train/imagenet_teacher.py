"""What the ImageNet classifier that the trunk came from says of a picture, kept while the trunk learns other things.

The classifier knows a thousand names from a million pictures; the data sets that train `textsam-tiny` show most of
these names a few times or never, and training lets the trunk forget them. Read at every position of the last map, and
not of its mean alone, the classifier tells where its names are (Zhou et al. 2016, *Learning Deep Features for
Discriminative Localization*).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from textsam.modeling.mobile_encoder import MobileNetV2
from train.trunk_weights import CLASSIFIER, read_trunk

CLASSES = 1000
SURE = 0.2  # what is less likely is mostly noise

# Known name -> classes of ILSVRC 2012, from 0. Each class has one name at most, and it is the plain word: all dogs are
# "dog". Classes without a plain name, and those that look like another name's things, are left out.
NAMES = """
shark: 2-4; chicken: 7-8; ostrich: 9; bird: 10-21 80-86 91-93 95-96 127-129 131-143 146; eagle: 22; vulture: 23;
owl: 24; frog: 30-32; turtle: 33-37; lizard: 38-47; crocodile: 49-50; snake: 52-68; spider: 72-77; centipede: 79;
parrot: 87-90; hummingbird: 94; duck: 97-98; goose: 99; swan: 100; elephant: 101 385-386; kangaroo: 104; koala: 105;
jellyfish: 107; snail: 113; crab: 118-121; lobster: 122-123; flamingo: 130; pelican: 144; penguin: 145; whale: 147-148;
sea lion: 150; dog: 151-268; wolf: 269-271; fox: 277-280; cat: 281-285; cougar: 286; lynx: 287; leopard: 288-289;
jaguar: 290; lion: 291; tiger: 292; cheetah: 293; bear: 294-297; ladybug: 301; beetle: 302-307; bee: 309; ant: 310;
dragonfly: 319-320; butterfly: 321-326; starfish: 327; rabbit: 330-332; hamster: 333; porcupine: 334; squirrel: 335;
horse: 339; zebra: 340; pig: 341-343; hippopotamus: 344; cow: 345-346; sheep: 348-349; antelope: 351-353; camel: 354;
alpaca: 355; otter: 360; gorilla: 366; monkey: 369-371 373-382; baboon: 372; giant panda: 388; accordion: 401;
guitar: 402 546; airplane: 404 895; blimp: 405; ambulance: 407; clock: 409 892; trash can: 412; rifle: 413 764;
backpack: 414; hot air balloon: 417; pen: 418 563; banjo: 420; barbell: 422; chair: 423 559 765; barrel: 427;
sports ball: 429-430 574 722 768 805 852 890; infant bed: 431 516 520; bath towel: 434; bathtub: 435;
car: 436 468 511 609 627 656 661 751 817; lighthouse: 437; bottle: 440 737 898 907; glass (drink container): 441;
bib: 443; bicycle: 444 671; ring binder: 446; binoculars: 447; boat: 472 484 554 576 625 780 814 871 914;
bookcase: 453; tie: 457 906; brassiere: 459; broom: 462; bucket: 463; bulletproof vest: 465;
train: 466 547 565 705 820; candle: 470; cannon: 471; can opener: 473; tire: 479; castle: 483; cello: 486;
cell phone: 487; chainsaw: 491; knife: 499 623; cup: 504 968; coffeepot: 505; keyboard: 508 878; ship: 510 628 724;
corkscrew: 512; trumpet: 513; boots: 514; cowboy hat: 515; helmet: 518; crate: 519; desk: 526; telephone: 528 707;
digital clock: 530; watch: 531; dining table: 532; dishwasher: 534; doormat: 539; drum: 541; dumbbell: 543;
mechanical fan: 545; envelope: 549; coffee maker: 550; filing cabinet: 553; fire truck: 555; flagpole: 557; flute: 558;
football helmet: 560; forklift: 561; fountain: 562; bed: 564; frying pan: 567; truck: 569 675 717 864 867;
wine glass: 572 966; golf cart: 575; piano: 579 881; hammer: 587; hair drier: 589; harp: 594; hourglass: 604; ipod: 605;
iron (for clothing): 606; jeans: 608; shirt: 610; joystick: 613; kimono: 614; lab coat: 617; ladle: 618; lamp: 619 846;
laptop: 620 681; lawn mower: 621; lighter: 626; lipstick: 629; leather shoes: 630; speaker: 632;
mailbox (at home): 637; mask: 643; measuring cup: 647; microphone: 650; microwave: 651; bus: 654 779 874;
bowl: 659 809; computer monitor: 664 782; motorcycle: 665 670; tent: 672; mouse: 673; necklace: 679; organ: 687;
paddle: 693; padlock: 695; paintbrush: 696; pajamas: 697; paper towel: 700; parachute: 701; bench: 703;
parking meter: 704; pencil case: 709; pencil sharpener: 710; perfume: 711; piggy bank: 719; pillow: 721; pitcher: 725;
plastic bag: 728; camera: 732 759; pole: 733; poncho: 735; billiard table: 736; potted plant: 738; printer: 742;
projector: 745; punching bag: 747; handbag: 748; quilt: 750; tennis racket: 752; radiator: 753;
camper (vehicle): 757; refrigerator: 760; remote: 761; handgun: 763; ruler: 769; sneakers: 770; safety pin: 772;
saltshaker: 773; sandal: 774; saxophone: 776; scoreboard: 781; screwdriver: 784; sewing machine: 786;
shopping cart: 791; shovel: 792; shower curtain: 794; skis: 795; sleeping bag: 797; snowmobile: 802; snowplow: 803;
sock: 806; sombrero: 808; spatula: 813; spotlight: 818; oven: 827; stretcher: 830; couch: 831; suit: 834;
sunglasses: 836-837; swing: 843; syringe: 845; army tank: 847; teapot: 849; teddy bear: 850; tv: 851; thimble: 855;
toaster: 859; toilet: 861; tractor (farm equipment): 866; tray: 868; tricycle: 870; trombone: 875; umbrella: 879;
vacuum cleaner: 882; vase: 883; vending machine: 886; violin: 889; waffle iron: 891; wallet: 893; wardrobe: 894;
sink: 896; washing machine: 897; jug: 899; water tower: 900; whistle: 902; wig: 903; window blind: 904-905; wok: 909;
spoon: 910; book: 917 921; street sign: 919; traffic light: 920; plate: 923; guacamole: 924; ice cream: 928;
popsicle: 929; bread: 930; bagel: 931; pretzel: 932; hamburger: 933; hot dog: 934; mashed potato: 935; cabbage: 936;
broccoli: 937; cauliflower: 938; zucchini: 939; cucumber: 943; artichoke: 944; bell pepper: 945; mushroom: 947;
apple: 948; strawberry: 949; orange: 950; lemon: 951; fig (fruit): 952; pineapple: 953; banana: 954; pomegranate: 957;
pizza: 963; burrito: 965; coffee: 967; person: 981-983; flower: 985; corn: 987; toilet paper: 999
"""


def classes_by_name() -> dict[str, list[int]]:
    """Known name -> its classes, from 0."""
    found: dict[str, list[int]] = {}
    for entry in NAMES.replace("\n", " ").split(";"):
        name, _, numbers = entry.rpartition(":")
        ends = [[int(end) for end in part.split("-")] for part in numbers.split()]
        found[name.strip()] = [number for end in ends for number in range(end[0], end[-1] + 1)]
    return found


class ImageNetTeacher:
    """The trunk as ImageNet left it, with its classifier.

    Args:
        weights: safetensors of a MobileNetV2 with `conv18` and `classifier`; a class before the thousand is background.
        name_index: known name -> row of the table of name embeddings.
    Attributes:
        names: rows of the names that the classifier knows, N of them.
    """

    def __init__(self, weights: str | Path, name_index: Mapping[str, int]) -> None:
        state = read_trunk(weights)
        if missing := [name for name in CLASSIFIER if name not in state]:
            raise ValueError(
                f"{weights} lacks {' and '.join(missing)}: the teacher needs the weights with their classifier"
            )
        weight, bias = (state.pop(name) for name in CLASSIFIER)
        self.trunk = MobileNetV2(with_head=True).eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.trunk.load_state_dict(state, strict=True)
        self.weight, self.bias, background = weight, bias, len(bias) - CLASSES
        names = {name: numbers for name, numbers in classes_by_name().items() if name in name_index}
        self.names = [name_index[name] for name in names]
        self.classes = [torch.tensor(numbers) + background for numbers in names.values()]

    @torch.no_grad()
    def __call__(self, pixel_values: Tensor) -> Tensor:
        """
        Args:
            pixel_values: (B, 3, H, W), RGB, x / 127.5 - 1.
        Returns:
            (B, N, H/32, W/32) probability of the likeliest class of each name, 0 where it is under `SURE`.
        """
        if self.weight.device != pixel_values.device:
            self.trunk.to(pixel_values.device)
            self.weight, self.bias = self.weight.to(pixel_values.device), self.bias.to(pixel_values.device)
            self.classes = [numbers.to(pixel_values.device) for numbers in self.classes]
        # The classifier knows means over 7 x 7 places; over 3 x 3 it is surer of what it is right about than over one.
        features = F.avg_pool2d(self.trunk(pixel_values).float(), 3, 1, 1, count_include_pad=False)
        probability = F.linear(features.movedim(1, -1), self.weight, self.bias).softmax(-1)
        named = torch.stack([probability[..., numbers].amax(-1) for numbers in self.classes], dim=1)
        return torch.where(named < SURE, 0.0, named)


def distillation_loss(logits: Tensor, taught: Tensor) -> Tensor:
    """Cross entropy from the teacher's probabilities to a softmax over the student's logits for the same names.

    Which of the names fits best is taught, not whether one fits: in a photo of several things the classifier, trained
    on pictures of one, says too little of each. A place counts by how much of the probability the names have.

    Args:
        logits: (..., N) of the student. taught: (..., N) probabilities, that may sum to less than 1.
    """
    return -(taught * logits.log_softmax(-1)).sum() / taught.sum().clamp(min=1e-6)
