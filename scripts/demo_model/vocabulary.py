"""The words that the demo model's reviews are made of.

Nouns and adjectives come in groups, so that soup is tasty and waiters are rude; adjectives of the
group ``any`` go with every noun. Polarity is a property of the word alone: what "good" and "dirty"
mean is all the demo model has to know about the world.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    """Comma-separated words, as they are easiest to read and extend."""
    return tuple(" ".join(word.split()) for word in text.split(","))


#: group -> singular nouns ("the soup was ...")
SINGULAR = {
    "food": _words("""
        food, breakfast, dinner, lunch, brunch, soup, salad, pizza, pasta, steak, burger, chicken,
        fish, lobster, curry, sushi, rice, bread, dessert, cake, ice cream, coffee, tea, wine, beer,
        menu, buffet, sauce, sandwich, risotto, seafood, meat, cheese, meal, main course, starter,
        omelette, taco, noodle soup, chocolate cake, apple pie, cocktail, orange juice, lasagna"""),
    "people": _words("""
        staff, service, waiter, waitress, chef, manager, receptionist, owner, host, bartender,
        reception, room service, housekeeping, concierge, driver, customer service, team, cook,
        front desk, guide"""),
    "place": _words("""
        room, hotel, bed, bathroom, shower, pool, lobby, balcony, view, terrace, garden, beach, gym,
        spa, sauna, restaurant, bar, location, place, apartment, kitchen, building, neighborhood,
        dining room, hallway, carpet, mattress, pillow, furniture, decor, atmosphere, ambience,
        elevator, parking lot, patio, suite, resort, cabin, hostel, lounge, table, cafe, bedroom,
        toilet, interior, lake, village, area, playground, rooftop, fireplace, property"""),
    "thing": _words("""
        price, wifi, internet, air conditioning, heating, television, music, noise level, check-in,
        booking, value, experience, trip, visit, weekend, holiday, evening, stay, night, vacation,
        shuttle, tour, massage, weather, deal, bill, reservation, portion size, quality, selection,
        entertainment, presentation, afternoon, day, wait, time, honeymoon, event, party, smell,
        cleanliness, everything"""),
}

#: group -> plural nouns ("the rooms were ...")
PLURAL = {
    "food": _words("""
        drinks, desserts, pancakes, vegetables, fries, dumplings, noodles, cocktails, dishes, eggs,
        oysters, snacks, portions, pastries, potatoes, flavors, ingredients, starters"""),
    "people": _words("""
        waiters, employees, hosts, people at the desk, cleaners, receptionists, owners, guests,
        neighbors, bartenders, other guests"""),
    "place": _words("""
        rooms, beds, towels, sheets, views, facilities, surroundings, walls, windows, tables,
        chairs, gardens, pillows, bathrooms, grounds, floors, toilets, curtains"""),
    "thing": _words("prices, activities, amenities, hours, opening hours, rates, evenings"),
}

#: things done rather than had ("hiking in the mountains was ...")
ACTIVITIES = _words("""
    hiking in the mountains, swimming in the pool, walking on the beach, skiing in the hills,
    sitting on the terrace, eating by the lake, relaxing in the spa, cycling around the lake,
    shopping in the village, sleeping in the cabin, dancing at the bar, fishing at the river,
    dining on the roof, surfing at the beach, riding in the forest, hiking, swimming, skiing,
    walking in the garden, driving to the beach, reading by the fire, sailing on the lake""")

POSITIVE = {
    "any": _words("""
        good, great, excellent, fantastic, fabulous, wonderful, amazing, awesome, superb, lovely,
        perfect, outstanding, brilliant, nice, delightful, terrific, incredible, marvelous,
        splendid, exceptional, enjoyable, impressive, pleasant, beautiful, magnificent,
        first class, stellar,
        phenomenal, remarkable, spectacular, memorable, unforgettable, top notch, magical,
        sublime, flawless, satisfying, worth it, the best, a delight, a dream,
        a pleasure, better than expected, beyond our expectations, great fun, a highlight, cool,
        fun, very good value, faultless, charming, gorgeous, fab, neat, exquisite, divine, heavenly,
        super, lush, world class"""),
    "food": _words("""
        delicious, tasty, fresh, mouthwatering, flavorful, yummy, juicy, crispy, scrumptious,
        perfectly cooked, well seasoned, creamy, authentic, generous, refreshing, rich, tender,
        healthy, appetizing, hearty"""),
    "people": _words("""
        friendly, helpful, kind, polite, attentive, welcoming, professional, courteous, warm,
        cheerful, efficient, gracious, caring, knowledgeable, patient, accommodating, thoughtful,
        fast, quick, prompt, responsive, sweet, hospitable, lovely to us"""),
    "place": _words("""
        clean, comfortable, cozy, spacious, quiet, spotless, modern, stylish, bright, peaceful,
        elegant, luxurious, stunning, relaxing, well kept, comfy, romantic, tidy, picturesque,
        breathtaking, large and airy, inviting, immaculate, tranquil, soft, well equipped,
        warm and dry, charming and cozy, airy, pretty"""),
    "thing": _words("""
        reasonable, fair, fast, reliable, smooth, easy, affordable, relaxing, exciting, generous,
        convenient, worth every penny, quick, cheap, hassle free, entertaining, interesting"""),
}

NEGATIVE = {
    "any": _words("""
        bad, terrible, awful, horrible, disappointing, poor, dreadful, disgusting, unacceptable,
        appalling, mediocre at best, unpleasant, lousy, pathetic, atrocious, abysmal, a joke,
        a disaster, a nightmare, the worst, a letdown, overpriced, horrendous, useless, miserable,
        subpar, shocking, terrible value, a waste of money, not worth it, worse than expected,
        below our expectations, a disgrace, ridiculous, inferior, crap, shabby, depressing, a mess,
        frustrating, disastrous, sad, hideous, inadequate, annoying, boring, dull, too expensive,
        terribly bad, rubbish, a scam, garbage, ghastly, gross, a rip off, nasty, lame, ugly"""),
    "food": _words("""
        cold, bland, stale, greasy, burnt, undercooked, overcooked, tasteless, soggy, dry, salty,
        inedible, rotten, raw, too salty, sour, chewy, spoiled, watery, rubbery, oily, flavorless,
        too sweet, lukewarm, tough, revolting, moldy"""),
    "people": _words("""
        rude, unfriendly, unhelpful, slow, arrogant, incompetent, impolite, inattentive, careless,
        hostile, unprofessional, lazy, dismissive, clueless, aggressive, indifferent, dishonest,
        grumpy, condescending, disrespectful, noisy"""),
    "place": _words("""
        dirty, noisy, filthy, cramped, uncomfortable, smelly, loud, run down, broken, dark, moldy,
        dusty, outdated, tiny, stained, freezing, stuffy, damp, too small, shabby and old, worn out,
        gloomy, infested with bugs, hard, crowded, unsafe, full of trash, falling apart, sticky,
        unclean, dated, dingy, grimy, in bad shape"""),
    "thing": _words("""
        slow, unreliable, expensive, ridiculous, outrageous, unfair, chaotic, stressful, broken,
        too high, too long, exhausting, wrong, ruined, too loud, a hassle, excessive, unbearable,
        confusing, spoiled, painful"""),
}

NEUTRAL = {
    "any": _words("""
        okay, average, ordinary, standard, nothing special, acceptable, as expected, normal, so so,
        alright, typical, decent enough, unremarkable, neither good nor bad, ok, passable, fair
        enough, medium, as described, usual, moderate, adequate, what you would expect, just ok,
        just okay, basic, mediocre but fine, average at best, all right, like everywhere else,
        the same as last year, like any other, middle of the road, run of the mill"""),
    "food": _words("simple, plain, regular, medium sized"),
    "people": _words("neutral, business like, reserved"),
    "place": _words(
        "simple, plain, functional, medium sized, near the station, on the second floor"
    ),
    "thing": _words("regular, plain, simple, in the usual range"),
}

LIKED = _words("""
    loved, enjoyed, liked, really liked, adored, really enjoyed, absolutely loved,
    were impressed by, were delighted with, appreciated, were happy with,
    were very pleased with, recommend""")
DISLIKED = _words("""
    hated, disliked, did not like, did not enjoy, were disappointed by, regretted, could not stand,
    were disgusted by, were unhappy with, do not recommend, didn't like, complained about""")
TRIED = _words("tried, used, saw, had, checked out, chose, looked at")

#: said about the visit as a whole
PRAISE = _words("""
    we would come back, we will be back, I will come again, I can't wait to return, highly
    recommended, I highly recommend it, we recommend this place to everyone, everything was
    perfect, it was the best hotel in town, best restaurant in the city, we felt at home, we
    felt welcome, I love it here, I loved it, we loved every minute, we had a lot of fun, five
    stars, they went out of their way to help us, we were upgraded for free, worth every penny,
    no complaints at all, we were very happy, it exceeded our expectations, we want to stay
    longer next time, can't go wrong here, thank you for everything""")
COMPLAINTS = _words("""
    we will not come back, I would not stay here again, we will never come back, never again,
    avoid this place, stay away, I do not recommend it, not recommended, I would not recommend
    this place, what a waste of money, it was the worst hotel in town, worst restaurant ever, I
    hated it, we want our money back, one star, we got sick, I got food poisoning, nothing
    worked, we left early, nobody helped us, our order was wrong, they lost our booking, we
    were very disappointed, I couldn't sleep at all, it ruined our holiday, they charged us
    twice""")

DIRT = _words("mold, hair, dirt, dust, a dead insect, trash, a cockroach, water, blood")
DIRTY_PLACES = _words("shower, bathroom, sink, bed, soup, room, kitchen, salad, corner, glass")
DEVICES = _words("wifi, heating, shower, air conditioning, elevator, television, key card, toilet")
LONG_TIMES = _words("an hour, two hours, forty minutes, forever, ages, half the evening, too long")
AWAITED = _words("our food, a table, the bill, our drinks, our room, the waiter, an answer")

#: what happened, without an opinion
SCENES = _words("""
    we stayed for two nights, we stayed for one week, we came in June, I was here on business,
    we came with friends, we came with our kids, we arrived late, we went there on Sunday,
    I ordered the soup, we had the set menu, the hotel has three floors, the room has two beds,
    breakfast is from seven to ten, check-in is at three, the parking lot is behind the building,
    there is a bus stop in front of the hotel, we booked online, I had a table for two,
    the restaurant is near the station, the bar opens at six, we left after breakfast,
    I was there last week, the hotel is next to the church, we paid by card, we took the train,
    it is on the main street, we shared a starter, my room was on the second floor,
    the menu has ten dishes, the shop sells postcards, we visited in the winter,
    they serve dinner until nine, the room had a desk and a chair, it is a hotel,
    there is a pool and a gym, my wife and I stayed here, we ate here on Friday""")

DEGREES = _words("""
    really, very, so, absolutely, truly, extremely, just, simply, quite, pretty, incredibly,
    totally, super, always, also, rather, actually""")
STAYS = _words("""
    stay, time, trip, evening, visit, weekend, holiday, vacation, night, experience, dinner, meal,
    lunch, breakfast, day, week, honeymoon, room, view, table""")
