"""The things that captions of photographs name, by kind: one concept a line, in the form that `lexicon.py` explains."""

from __future__ import annotations

PEOPLE = """
person: people human someone individual pedestrian bystander
man: men guy gentleman gentlemen male dude father dad grandfather > adult
woman: women lady female mother mom grandmother > adult
adult: grown-up > person
boy: > child
girl: > child
child: children kid youngster > person
baby: infant > child
toddler: > child
teenager: teen teenage youth > person
crowd: audience spectator fan onlooker > person many
family: families > person
friend: > person
player: athlete teammate > person
soccer_player: > player soccer
football_player: > player football
basketball_player: > player basketball
baseball_player: pitcher batter > player baseball
tennis_player: > player tennis
surfer: > person surfing
skateboarder: skater > person skateboarding
snowboarder: > person snowboarding
skier: > person skiing
swimmer: > person swim
climber: mountaineer > person climb
hiker: backpacker > person hiking
cyclist: bicyclist biker > person cycling
motorcyclist: motorcycle_rider > person motorcycle
runner: jogger > person run
rider: jockey > person ride
dancer: > person dance
musician: singer guitarist drummer > person music
worker: workman workmen > person
fisherman: fishermen > person fishing
policeman: policemen police officer cop > person
clown: > person
cowboy: > person
bride: groom > person
performer: entertainer > person
photographer: > person
"""
ANIMALS = """
animal: creature
dog: puppy doggy hound greyhound terrier poodle retriever collie shepherd lab labrador bulldog husky > animal
cat: kitten > animal
horse: pony stallion > animal
bird: duck seagull pigeon goose geese swan eagle > animal
cow: bull calf cattle > animal
sheep: lamb goat > animal
fish: dolphin > animal
elephant: > animal
bear: > animal
monkey: > animal
"""
VEHICLES = """
vehicle:
car: automobile jeep suv taxi van > vehicle
truck: pickup > vehicle
bus: trolley > vehicle
train: subway locomotive > vehicle
bicycle: bike tricycle bmx mountain_bike > vehicle cycling
motorcycle: motorbike dirt_bike dirtbike motocross atv moped > vehicle
boat: canoe kayak raft ship sailboat rowboat > vehicle
airplane: plane jet helicopter aircraft > vehicle
skateboard: > skateboarding
scooter: > vehicle
wagon: cart carriage > vehicle
sled: sleigh toboggan sledding
stroller:
unicycle:
"""
SPORTS = """
soccer:
football:
basketball:
baseball: softball
tennis:
hockey:
volleyball:
golf:
rugby:
lacrosse:
cricket:
karate: martial_arts
wrestling: wrestle wrestler sumo
boxing: boxer
gymnastics: gymnast
surfing: surf > surfboard
skateboarding: > skateboard
snowboarding: > snowboard
skiing: > ski
skating: skate rollerblading
cycling: biking > bicycle
rafting: > boat
kayaking: canoeing > boat
hiking: hike trek
fishing:
ball:
frisbee: disc
racket: racquet
bat:
surfboard: bodyboard > surfing
snowboard: > snowboarding
ski: > skiing
net:
goal:
hoop: hula_hoop
game: match competition tournament
race: racing raced
team:
trick: stunt
"""
PLACES = """
beach: seashore shoreline shore coast
sand: sandy dune
water:
ocean: sea > water
lake: pond > water
river: creek stream rapid > water
wave: > water
waterfall: > water
pool: swimming_pool > water
fountain: > water
puddle: > water
snow: snowy snow-covered
ice: icy
grass: grassy lawn
field: meadow pasture
park:
playground:
yard: backyard
garden:
forest: woods woodland jungle wooded
tree: palm_tree
bush: shrub
flower:
mountain: mountainside mountaintop
hill: hillside slope
rock: boulder stone rocky
cliff:
cave:
desert:
valley: canyon
dirt:
mud: muddy
sky:
cloud:
sun: sunshine
sunset: sunrise dusk
night:
street: > road
road: highway
sidewalk: pavement crosswalk walkway
path: trail
track: racetrack
bridge:
city: town urban downtown
building: skyscraper
house: home cabin > building
store: shop market grocery
restaurant: cafe
stadium: arena
court:
rink:
gym: gymnasium
stage:
station:
tunnel:
kitchen:
room: bedroom
office:
church:
dock: pier
porch: balcony patio deck
stairs: stair staircase steps
ramp: half-pipe half_pipe
wall:
fence: fenced
gate:
window:
door: doorway
floor: carpet
parade: carnival festival party
"""
CLOTHING = """
clothes: clothing outfit attire
shirt: t-shirt tshirt
jacket: coat parka
sweater: sweatshirt hoodie
vest: life_jacket life_vest
jersey: > uniform
uniform:
suit: tuxedo
dress: gown
skirt:
pants: jeans trousers overalls
shorts: trunks swim_trunks
swimsuit: bikini bathing_suit swimwear speedo wetsuit
hat: cap beanie headband bandanna
helmet:
glasses:
sunglasses: goggles
shoe: boot sneaker sandal
glove:
scarf: scarves headscarf
tie:
costume:
mask:
backpack: > bag
shirtless:
barefoot:
"""
THINGS = """
circle: disk
square:
triangle:
rectangle:
star:
heart:
diamond:
toy: stuffed_animal teddy doll
stick: branch log
rope:
bench:
chair: seat
table:
couch: sofa
bed:
camera:
phone: cellphone telephone
computer: laptop
book:
newspaper: magazine
guitar: > music
drum: > music
instrument: violin > music
music: band
microphone:
sign:
flag:
balloon:
bubble:
kite:
umbrella:
tent:
bag: purse handbag
box:
bucket:
bottle: beer soda
cup: mug
food: meal snack hot_dog
ice_cream: > food
cake: > food
cigarette:
trampoline:
tire:
wheelchair:
hurdle: obstacle
pole:
rail: railing handrail
ladder:
statue: sculpture
fire:
leash:
collar:
hose: sprinkler
paint: painting
graffiti:
picture: photograph photo
hair: haired
beard: bearded
face:
head:
mouth:
tongue:
hand:
arm:
leg:
foot: feet
"""

NOUNS = {
    "people": PEOPLE,
    "animals": ANIMALS,
    "vehicles": VEHICLES,
    "sports": SPORTS,
    "places": PLACES,
    "clothing": CLOTHING,
    "things": THINGS,
}
