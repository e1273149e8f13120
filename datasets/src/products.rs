//! The products of the demonstration table and what their makers say about them.
//!
//! A description is long and dry on purpose: it costs prompt tokens, repeats in every review of the product, and says nothing
//! that could be taken for an opinion.

/// A product that people review.
pub(crate) struct Product {
    /// Its name.
    pub(crate) name: &'static str,
    /// The shelf it stands on.
    pub(crate) category: &'static str,
    /// What it is called in a sentence: "the kettle".
    pub(crate) noun: &'static str,
    /// What it is made of.
    material: &'static str,
    /// Height, width and depth in centimetres.
    size_cm: [u16; 3],
    /// Weight in grams.
    weight_g: u16,
    /// What else lies in the box.
    contents: &'static str,
    /// Something specific to it.
    detail: &'static str,
    /// Years of warranty.
    warranty_years: u8,
}

#[allow(clippy::too_many_arguments, reason = "one argument for each column of the table below")]
const fn product(
    name: &'static str,
    category: &'static str,
    noun: &'static str,
    material: &'static str,
    size_cm: [u16; 3],
    weight_g: u16,
    contents: &'static str,
    detail: &'static str,
    warranty_years: u8,
) -> Product {
    Product { name, category, noun, material, size_cm, weight_g, contents, detail, warranty_years }
}

/// Every product, four of each category.
#[rustfmt::skip]
pub(crate) const PRODUCTS: [Product; 24] = [
    product("Alder Electric Kettle", "Kitchen", "kettle", "brushed steel", [24, 16, 22], 1150, "a removable limescale filter and a spare lid", "It holds 1.7 litres, draws 2200 watts and switches off once the water boils or when it is lifted from its base.", 2),
    product("Brindle Bread Knife", "Kitchen", "knife", "carbon steel with a beech handle", [3, 33, 2], 210, "a cardboard sheath", "The serrated blade is 21 centimetres long and is sharpened on one side only.", 5),
    product("Cobble Coffee Grinder", "Kitchen", "grinder", "aluminium and glass", [21, 9, 9], 640, "a cleaning brush and a measuring spoon", "Conical burrs are set by a ring with eighteen steps, from espresso to cold brew.", 2),
    product("Dovetail Cutting Board", "Kitchen", "board", "oiled acacia wood", [2, 40, 28], 1900, "four rubber feet and a screwdriver", "A groove along three edges collects liquids, and one side is left plain.", 1),
    product("Ember Desk Lamp", "Office", "lamp", "powder-coated steel", [46, 15, 30], 980, "a power adapter and a clamp for table edges", "The light has five levels and three colour temperatures, which are stored when the lamp is switched off.", 3),
    product("Fathom Wireless Mouse", "Office", "mouse", "recycled plastic", [4, 7, 11], 95, "a charging cable and a receiver for the USB port", "It pairs with three computers, and a switch on its underside chooses between them.", 2),
    product("Gable Monitor Stand", "Office", "stand", "bent plywood", [12, 55, 24], 2400, "two cable clips and a drawer", "It carries screens of up to 20 kilograms and leaves room for a keyboard below.", 2),
    product("Hawthorn Office Chair", "Office", "chair", "nylon mesh on an aluminium frame", [118, 66, 64], 14800, "tools and a printed assembly guide", "Seat height, seat depth, armrests and the force of the backrest can be adjusted while sitting.", 5),
    product("Inlet Rain Jacket", "Outdoor", "jacket", "three-layer polyester", [72, 58, 2], 390, "a stuff sack", "Seams are taped, the hood fits over a helmet, and vents under the arms open with zips.", 2),
    product("Juniper Camping Stove", "Outdoor", "stove", "titanium and brass", [10, 8, 8], 118, "a piezo lighter and a storage bag", "It screws onto common gas canisters and burns with 2600 watts at full flow.", 3),
    product("Kestrel Hiking Backpack", "Outdoor", "backpack", "ripstop nylon", [62, 32, 24], 1340, "a rain cover in its own pocket", "The volume is 45 litres, and the back length is set with a ladder of loops.", 3),
    product("Lichen Sleeping Pad", "Outdoor", "pad", "laminated polyester", [7, 183, 51], 480, "a pump sack and a repair kit", "The insulation value is 3.2, and the valve has separate openings for filling and for emptying.", 2),
    product("Marrow Hand Blender", "Appliances", "blender", "steel and plastic", [40, 7, 7], 870, "a whisk, a chopper and a beaker", "The motor has 800 watts and a dial with twelve speeds; the foot comes off at the press of two buttons.", 2),
    product("Nettle Air Purifier", "Appliances", "purifier", "plastic with a felt front", [52, 27, 27], 4300, "one particle filter, already fitted", "A sensor sets the fan speed, and a lamp tells when the filter has run for 4000 hours.", 2),
    product("Osprey Robot Vacuum", "Appliances", "vacuum", "plastic", [10, 34, 34], 3500, "a charging dock, two side brushes and a spare filter", "A rotating sensor maps the rooms, and zones to leave out are drawn in the app.", 2),
    product("Pebble Toaster", "Appliances", "toaster", "painted steel", [19, 29, 18], 1700, "a rack for rolls", "Two slots take slices of up to 36 millimetres, and a crumb tray slides out at the back.", 2),
    product("Quill Wireless Headphones", "Electronics", "headphones", "plastic and artificial leather", [19, 17, 8], 265, "a charging cable, an audio cable and a case", "Noise cancelling has two levels, and the battery lasts for 35 hours by the maker's measurement.", 2),
    product("Rowan Portable Speaker", "Electronics", "speaker", "woven fabric over plastic", [18, 8, 8], 610, "a charging cable and a wrist strap", "It is sealed to class IP67 and two of them can play as a stereo pair.", 2),
    product("Sorrel Fitness Watch", "Electronics", "watch", "aluminium with a silicone strap", [4, 4, 1], 38, "a charging puck and a second strap", "It records pulse, sleep and position, and keeps a week of data without a telephone nearby.", 1),
    product("Tamarack Power Bank", "Electronics", "power bank", "anodised aluminium", [15, 7, 3], 420, "two short cables", "The capacity is 20000 milliampere hours, with 65 watts at the first port and 18 at the second.", 2),
    product("Umber Wool Blanket", "Home", "blanket", "lambswool", [1, 200, 140], 1250, "a cotton bag", "It is woven in a twill, washed once after weaving, and finished with a fringe on the short sides.", 1),
    product("Vesper Curtain Set", "Home", "curtains", "linen and polyester", [245, 140, 1], 2100, "two tiebacks and eight hooks", "The lining lets no light through, and the upper hem takes rods of up to four centimetres.", 1),
    product("Willow Laundry Basket", "Home", "basket", "woven rattan with a cotton liner", [58, 42, 33], 2600, "a second liner", "Two compartments separate light and dark laundry, and the lid is fastened with leather loops.", 1),
    product("Yarrow Table Fan", "Home", "fan", "plastic and steel", [36, 31, 22], 2300, "a remote control with its battery", "It turns through ninety degrees, has eight speeds and can switch itself off after one to twelve hours.", 2),
];

impl Product {
    /// What the maker says: about 80 words, the same in every row of the product.
    pub(crate) fn description(&self) -> String {
        let [height, width, depth] = self.size_cm;
        format!(
            "{name}, made of {material}. Height {height} cm, width {width} cm, depth {depth} cm, weight {weight} g. {detail} The box \
             contains {contents}, a manual in six languages and a registration card. For cleaning, use a soft cloth and water below \
             forty degrees. Spare parts are kept in stock for seven years. The warranty runs for {years} from the date on the \
             receipt and covers material and manufacture.",
            name = self.name,
            material = self.material,
            weight = self.weight_g,
            detail = self.detail,
            contents = self.contents,
            years = if self.warranty_years == 1 { "one year".to_owned() } else { format!("{} years", self.warranty_years) },
        )
    }
}
