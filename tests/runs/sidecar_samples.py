"""Sidecars as photo programs write them, for the tests of those that read and merge them."""

DARKTABLE = """\
<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:lr="http://ns.adobe.com/lightroom/1.0/"
    xmlns:darktable="http://darktable.sf.net/"
   darktable:xmp_version="5"
   darktable:auto_presets_applied="1">
   <!-- kept by hand -->
   <dc:subject>
    <rdf:Bag>
     <rdf:li>sea</rdf:li>
     <rdf:li>A &amp; B</rdf:li>
    </rdf:Bag>
   </dc:subject>
   <lr:hierarchicalSubject>
    <rdf:Bag>
     <rdf:li>places|sea</rdf:li>
     <rdf:li>A &amp; B</rdf:li>
    </rdf:Bag>
   </lr:hierarchicalSubject>
   <darktable:history>
    <rdf:Seq>
     <rdf:li
      darktable:operation="exposure"
      darktable:params="gz02eJxjYGBgkGAAgRkMDA"/>
    </rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""

LIGHTROOM = """\
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="Adobe XMP Core 7.0-c000">\
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating='3'/>\
<rdf:Description rdf:about="" xmlns:D="http://purl.org/dc/elements/1.1/">\
<D:title><rdf:Alt><rdf:li xml:lang="x-default">The sea</rdf:li></rdf:Alt></D:title>\
<D:subject><rdf:Bag><rdf:li>sea</rdf:li></rdf:Bag></D:subject>\
</rdf:Description></rdf:RDF></x:xmpmeta>"""

DIGIKAM = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\r
<x:xmpmeta xmlns:x="adobe:ns:meta/">\r
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\r
  <rdf:Description rdf:about="uuid:faf5bdd5-ba3d-11da-ad31-d33d75182f1b"\r
    xmlns:dc="http://purl.org/dc/elements/1.1/"\r
    xmlns:digiKam="http://www.digikam.org/ns/1.0/">\r
   <dc:subject><rdf:Bag><rdf:li>sea</rdf:li></rdf:Bag></dc:subject>\r
   <digiKam:TagsList><rdf:Seq>\r
     <rdf:li>places/sea</rdf:li>\r
   </rdf:Seq></digiKam:TagsList>\r
  </rdf:Description>\r
 </rdf:RDF>\r
</x:xmpmeta>\r
<?xpacket end="w"?>"""

ODD = """\
<?xml version='1.0'?>
<RDF xmlns="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <Description about='1 > 0' xmlns:q='http://purl.org/dc/elements/1.1/' q:format="/>" ><q:subject
    ><Seq ><li >sea</li ><!-- <li>no</li> --></Seq></q:subject ></Description>
</RDF>
<!-- the end -->
"""

SAMPLES = {"darktable": DARKTABLE, "lightroom": LIGHTROOM, "digikam": DIGIKAM, "odd": ODD}

BARE = (
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""/></rdf:RDF>'
)
